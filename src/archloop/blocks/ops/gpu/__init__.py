"""Triton kernels: `gpu.X` computes what `ops.X` says, whose plain form it is tested against.

`attention`, `experts`, `gemv` and `rows` serve the fused inference of `stack.fused`, and each names
the plain form it equals. They count on contiguous last dimensions, widths that are multiples of 16,
and one dtype of weights and activations (bf16 in practice), and accumulate in float32. The others
serve mixers, in training too, so that each has its backward pass.

Importing this package imports nothing else: `triton` comes with CUDA builds of PyTorch only, so
whoever runs on a GPU imports the modules it needs.
"""
