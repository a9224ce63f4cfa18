"""The per-frame work, in a CPU form and a CUDA form."""
