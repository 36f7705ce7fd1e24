"""The CUDA engine: decoders of fused kernels, and the kernels that only serving needs."""
