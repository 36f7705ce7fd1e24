"""Fused Triton kernels for inference on NVIDIA GPUs; each file names the plain form it equals.

Importing this package imports nothing else: `triton` comes with CUDA builds of PyTorch only, so
whoever runs on a GPU imports the modules it needs.

What every file counts on: last dimensions are contiguous, widths are multiples of 16, weights and
activations share one dtype (bf16 in practice), and accumulation is in float32.
"""
