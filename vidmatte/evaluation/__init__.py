"""Compare mattes with the truth: still pictures of salient objects, and videos."""
