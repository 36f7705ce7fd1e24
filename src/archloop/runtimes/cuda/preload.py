"""What every process that measures a stack would load and work out anew, done at this import.

A server that forks measuring processes imports it, and its copies have all of it: the blocks of any
stack, and the names by which the caches of compiled kernels go. Those are hashes over all source
files of Triton and of PyTorch's compiler, half a second in each process that calls a kernel.
"""

from torch._inductor.codecache import torch_key
from torch._inductor.runtime.triton_compat import triton_key

from archloop import registry

for kind in ("mixers", "channel_mixers"):
    for name in registry.shipped(kind):
        registry.get(kind, name)

torch_key()
triton_key()
