"""Attention over a cache of its own, as each engine that reads ONNX has it.

Written out by products, a step's work is that of all slots there are, filled or not, and the cache
passes through it. Engines have an operator of their own, which looks at the filled slots alone and
keeps the cache where it lies: ONNX Runtime's is ``GroupQueryAttention``, OpenVINO's a product over
a cache that grows (`openvino_attention`). So while a decoder is traced, such attention is a node
without content, `CACHED`. A cache that several blocks read is written out as before: neither
operator gives it to a second reader.

Shape suffixes: B batch (1), T new tokens, C slots of the cache, D model width, N query heads,
M KV heads, H head width.
"""

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from archloop.blocks.base import Features, Span, State
from archloop.blocks.mixers.gqa import GQA
from archloop.runtimes.onnx.parts import DOMAIN
from archloop.stack.decoder import Decoder

CACHED = "CachedAttention"
CONTRIBUTED = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""


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


def cached(graph: ir.Graph) -> list[ir.Node]:
    """The nodes of a graph that stand for attention over a cache."""
    return [node for node in graph if (node.domain, node.op_type) == (DOMAIN, CACHED)]


def contributed(writer: Any, node: ir.Node) -> list[Any]:
    """``GroupQueryAttention`` in a node's place: its output (B, N, T, H), the caches after it.

    It takes heads side by side, and how many tokens there are with the new ones. Where an engine
    binds a cache and the one after it to the same memory, the new tokens are all that is written.

    Args:
        writer: of the nodes (`filling`).
        node: `CACHED`.
    """
    op, number = writer.main.op, writer.number
    q_BNTH, k_BMTH, v_BMTH, *caches, length_B = node.inputs
    heads, kv_heads = (node.attributes[name].as_int() for name in ("heads", "kv_heads"))
    flat = [
        op("Reshape", op("Transpose", x, perm=[0, 2, 1, 3]), number([0, 0, -1]))
        for x in (q_BNTH, k_BMTH, v_BMTH)
    ]
    tokens_1 = op("Gather", op("Shape", q_BNTH), number([2]))
    total = op("Cast", op("Add", length_B, tokens_1), to=ir.DataType.INT32)
    last = op("Sub", total, number(1, "int32"))
    y_BTd, *after = op(
        "GroupQueryAttention",
        *flat,
        *caches,
        last,
        total,
        outputs=3,
        domain=CONTRIBUTED,
        num_heads=heads,
        kv_num_heads=kv_heads,
        scale=node.attributes["scale"].as_float(),
    )
    y_BTNH = op("Reshape", y_BTd, number([0, 0, heads, -1]))
    for cache, new in zip(caches, after, strict=True):
        assert cache is not None
        new.shape, new.type = cache.shape, cache.type
    return [op("Transpose", y_BTNH, perm=[0, 2, 1, 3]), *after]
