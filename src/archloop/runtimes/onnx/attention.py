"""Attention over a cache of its own, as each engine that reads ONNX has it.

Written out by products, a step's work is that of all slots there are, filled or not, and the cache
passes through it. Engines have an operator of their own, which looks at the filled slots alone and
keeps the cache where it lies: ONNX Runtime's is ``GroupQueryAttention``, OpenVINO's a product over
a cache that grows (`openvino_attention`). So while a decoder is traced, such attention is a node
without content, `CACHED`, which gets that of the engine afterwards: in `onnx.filling`, or where
OpenVINO reads the file. A cache that several blocks read is written out as before: neither operator
gives it to a second reader.

Shape suffixes: B batch (1), T new tokens, C slots of the cache, D model width, N query heads,
M KV heads, H head width.
"""

import torch
from torch import Tensor

from archloop.blocks.base import Features, Span, State
from archloop.blocks.mixers.gqa import GQA
from archloop.runtimes.onnx.parts import DOMAIN
from archloop.stack.decoder import Decoder

CACHED = "CachedAttention"


def fuse(decoder: Decoder, multiple: int = 1) -> None:
    """Let attention whose cache no other block reads be traced as `CACHED`, in place.

    Args:
        decoder: whose mixers change their class; their weights stay.
        multiple: of head widths that the engine's operator takes.
    """
    own: dict[GQA, bool] = {}
    for index, block in enumerate(decoder.spec.blocks):
        for slot, spec in enumerate(block.mixers):
            mixer = decoder.mixer(index, slot)
            if type(mixer) is GQA and mixer.head_dim % multiple == 0:
                alone = spec.state_from is None and not decoder.is_source(index, slot)
                # Blocks that share weights may be one mixer here.
                own[mixer] = own.get(mixer, True) and alone
    for mixer, is_own in own.items():
        if is_own:
            mixer.__class__ = CachedGQA


class CachedGQA(GQA):
    """Attention as one node, given the new keys and values and the cache before them."""

    def features(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:
        assert state is not None, "a graph of inference has a state"
        k_BMTH, v_BMTH = self.keys_values(x_BTD, span.positions_BT)
        return {"k": k_BMTH, "v": v_BMTH, "k_cache": state["k"], "v_cache": state["v"]}

    def read(self, x_BTD: Tensor, shared: Features, span: Span) -> Tensor:
        q_BNTH = self.queries(x_BTD, span.positions_BT)
        caches = shared["k_cache"], shared["v_cache"]
        y_BNTH, *after = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{CACHED}",
            (q_BNTH, shared["k"], shared["v"], *caches, span.positions_BT[:, 0]),
            {"scale": self.scale, "heads": self.num_heads, "kv_heads": self.num_kv_heads},
            dtypes=[q_BNTH.dtype, *(cache.dtype for cache in caches)],
            shapes=[q_BNTH.shape, *(cache.shape for cache in caches)],
            version=1,
        )
        for cache, new in zip(caches, after, strict=True):
            cache.copy_(new)
        return self.join(x_BTD, y_BNTH)
