"""The per-frame work in PyTorch: on an NVIDIA GPU, and on a CPU for reference.

Everything here takes and returns tensors on the device of its inputs. Nothing waits for the device,
branches on a value or makes a tensor from host data while it works, so that CUDA graphs can record
it; constants are made when an object is built.
"""
