"""Triton kernels that only serving needs: batch 1 attention, experts, matrix by vector, rows.

Each names the plain form it equals. They count on contiguous last dimensions, widths that are
multiples of 16, and one dtype of weights and activations (bf16 in practice), and accumulate in
float32.

Importing this package imports nothing else: `triton` comes with CUDA builds of PyTorch only, so
whoever runs on a GPU imports the modules it needs.
"""
