"""Attention over a KV cache or a window's ring (`blocks.fast.CachedAttention`) through kernels.

Shape suffixes: as in `runtimes.cuda.half`; N query heads, M KV heads, H head width, S cached keys,
C cache slots.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from archloop.blocks.fast import CachedAttention
from archloop.blocks.ops.attention import takes_windows, window_attention
from archloop.blocks.ops.rope import Rope
from archloop.runtimes.cuda.half import Call, Half, PlainMixer
from archloop.runtimes.cuda.kernels import attention, gemv, rows
from archloop.runtimes.cuda.output import Output
from archloop.runtimes.cuda.row import Norm, Row
from archloop.stack.state import DecoderState, MixerKey

HEAD_DIMS = (64, 128)
"""Head widths that the kernels take."""

BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""Attention over a prompt, fastest on Hopper first."""


class RopeTables:
    """Cosines and sines of all positions, one pair of tables for each head width and RoPE."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.num_rows = device, 0
        self.heads: set[tuple[int, Rope]] = set()
        self._tables: dict[tuple[int, Rope], tuple[Tensor, Tensor]] = {}

    def reach(self, max_context: int) -> None:
        """Make the tables as long as the longest state so far."""
        if max_context > self.num_rows:
            self._tables = {
                head: attention.rope_tables(max_context, *head, self.device) for head in self.heads
            }
            self.num_rows = max_context

    def __getitem__(self, head: tuple[int, Rope]) -> tuple[Tensor, Tensor]:
        return self._tables[head]

    def held(self) -> list[Tensor]:
        """All tables as they are: a captured step reads them at their addresses."""
        return [table for pair in self._tables.values() for table in pair]


class AttentionHalf(Half):
    """Norm, attention over the cache, residual."""

    is_mixer = True

    def __init__(
        self,
        form: CachedAttention,
        key: MixerKey,
        norm: Norm,
        post_norm: Norm | None,
        overlap: bool,
        tables: RopeTables,
    ) -> None:
        self.form, self.key, self.norm, self.overlap = form, key, norm, overlap
        self.head, self.tables = (form.head_dim, form.rope), tables
        tables.heads.add(self.head)
        self.output = Output(form.out_proj, post_norm, overlap)

    def rows(self, x_XD: Tensor, h_XD: Tensor | None, call: Call, after: Norm) -> Tensor | None:
        assert h_XD is not None
        qkv_XH = F.linear(h_XD, self.form.qkv_proj)
        gate_proj = self.form.gate_proj
        gate_XN = None if gate_proj is None else F.linear(h_XD, gate_proj)
        if call.time is None:
            y_Xd = self._step(qkv_XH, gate_XN, call.state, overlap=False)
        else:
            y_Xd = self._prompt(qkv_XH.view(-1, call.time, qkv_XH.shape[-1]), call)
            if gate_XN is not None:
                rows.gate_heads(y_Xd, gate_XN)
        return self.output.rows(x_XD, y_Xd, after)

    def one(self, row: Row, call: Call) -> None:
        qkv_proj, gate_proj = self.form.qkv_proj, self.form.gate_proj
        qkv = row.x_D.new_empty(qkv_proj.shape[0])
        gate_N = None if gate_proj is None else row.x_D.new_empty(gate_proj.shape[0])
        gates = None if gate_proj is None or gate_N is None else (gate_proj, gate_N)
        gemv.linear(row.read(), qkv_proj, qkv, norm=self.norm, more=gates, pdl=self.overlap)
        gate_1N = None if gate_N is None else gate_N[None]
        y_d = self._step(qkv[None], gate_1N, call.state, overlap=self.overlap)[0]
        self.output.one(row, y_d)

    def touched(self, state: DecoderState) -> list[Tensor]:
        return [state.mixers[self.key][name][:, :, :1] for name in ("k", "v")]

    def _step(
        self, qkv_BH: Tensor, gate_BN: Tensor | None, state: DecoderState, *, overlap: bool
    ) -> Tensor:
        """Outputs (B, N H) of one token a row."""
        own = state.mixers[self.key]
        return attention.step(
            qkv_BH, self.form.norms, self.tables[self.head], own["k"], own["v"],
            state.lengths_B, self.form.scale, gate_BN=gate_BN, pdl=overlap,
        )  # fmt: skip

    def _prompt(self, qkv_BTH: Tensor, call: Call) -> Tensor:
        """Outputs (X, N H) of prompts, whose keys and values are put into the cache."""
        assert call.time is not None
        own, width = call.state.mixers[self.key], self.form.num_heads * self.form.head_dim
        k_BMCH, v_BMCH, end = own["k"], own["v"], call.held + call.time
        lengths_B = call.state.lengths_B
        attention.store(qkv_BTH, self.form.norms, self.tables[self.head], k_BMCH, v_BMCH, lengths_B)
        q_BNTH = qkv_BTH[..., :width].unflatten(-1, (-1, self.form.head_dim)).transpose(1, 2)
        mask = causal_lower_right(call.time, end) if call.held else None
        with sdpa_kernel(BACKENDS, set_priority=True):
            y_BNTH = F.scaled_dot_product_attention(
                q_BNTH, k_BMCH[:, :, :end], v_BMCH[:, :, :end], attn_mask=mask,
                is_causal=mask is None, scale=self.form.scale, enable_gqa=True,
            )  # fmt: skip
        return y_BNTH.transpose(1, 2).reshape(-1, width)


class WindowHalf(AttentionHalf):
    """The same over a ring of slots.

    A prompt that continues a text runs the mixer's own code: it reads what the ring holds in the
    order of positions.
    """

    def __init__(self, plain: PlainMixer, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._plain = plain

    def rows(self, x_XD: Tensor, h_XD: Tensor | None, call: Call, after: Norm) -> Tensor | None:
        if call.time is not None and not self._from_start(x_XD, call):
            return self._plain.rows(x_XD, h_XD, call, after)
        return super().rows(x_XD, h_XD, call, after)

    def _from_start(self, x_XD: Tensor, call: Call) -> bool:
        assert call.time is not None
        rows = x_XD.shape[0] // call.time
        return call.held == 0 and takes_windows(x_XD, rows, self.form.head_dim)

    def _prompt(self, qkv_BTH: Tensor, call: Call) -> Tensor:
        form, own = self.form, call.state.mixers[self.key]
        assert form.window is not None
        lengths_B, tables = call.state.lengths_B, self.tables[self.head]
        attention.store(
            qkv_BTH, self.form.norms, tables, own["k"], own["v"], lengths_B,
            real_B=call.real_B, keys_too=True,
        )  # fmt: skip
        heads_BNTH = qkv_BTH.unflatten(-1, (-1, form.head_dim)).transpose(1, 2)
        kv = (heads_BNTH.shape[1] - form.num_heads) // 2
        q_BNTH, k_BMTH, v_BMTH = heads_BNTH.split([form.num_heads, kv, kv], 1)
        y_BNTH = window_attention(q_BNTH, k_BMTH, v_BMTH, form.window, form.scale)
        return y_BNTH.transpose(1, 2).reshape(qkv_BTH.shape[0] * qkv_BTH.shape[1], -1)
