"""Triton kernels: `gpu.X` computes what `ops.X` says, whose plain form it is tested against.

All serve mixers, in training too, so that each has its backward pass; `step_attention` alone has
none, as nobody trains through a decode step. Kernels of an engine's own are in
`archloop.runtimes.cuda.kernels`.

Importing this package imports nothing else: `triton` comes with CUDA builds of PyTorch only, so
whoever runs on a GPU imports the modules it needs.
"""
