"""Remove the background from video; change nothing else about it."""
