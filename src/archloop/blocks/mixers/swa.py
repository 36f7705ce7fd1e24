"""Sliding-window attention: each query sees the last `window` tokens, itself among them.

Mistral (arXiv 2310.06825). The state is a ring of ``min(window, max_context)`` slots: a token's
slot is its position modulo the ring, and keys keep their absolute RoPE, so the order of slots means
nothing. The parallel form cuts time into chunks no shorter than the window; a chunk of queries
reads the chunk before it and its own, which is exact and linear in T. A call of one chunk reads
the keys that there are.

Shape suffixes: as in `blocks.attention`, and C chunk, n chunks, c keys that a chunk reads, L past
keys, R ring slots.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.attention import Attention, AttentionConfig
from archloop.blocks.base import Features, Gene, Held, Span, State
from archloop.blocks.fast import CachedAttention
from archloop.blocks.ops.attention import attention, takes_windows, window_attention

MIN_CHUNK = 64
"""Chunks shorter than this spend more on dispatch than on arithmetic."""


class SWA(Attention):
    """Attention over a window; the state is 2 M H values for each token of the window."""

    class Config(AttentionConfig):
        """As `AttentionConfig`; LFM3 uses a window of 256 and a RoPE base of 10,000."""

        window: Annotated[int, Gene((256, 512, 1024, 2048))] = Field(512, ge=1)
        rope_theta: float | None = Field(1e4, gt=1)

        def reach(self, d_model: int) -> int:
            return self.window - 1

        def state_layout(self, d_model: int, context: int) -> dict[str, Held]:
            slots = min(self.window, context)
            ring = Held("recent", (self.sizes(d_model)["num_kv_heads"], slots, self.head_dim))
            return {"k": ring, "v": ring}

        def flop_terms(
            self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
        ) -> dict[str, int]:
            # Token t sees min(window, context + t + 1) keys: a ramp, then a plateau.
            ramp = min(max(self.window - context, 0), num_tokens)
            pairs = ramp * context + ramp * (ramp + 1) // 2 + (num_tokens - ramp) * self.window
            return self.pair_flop_terms(d_model, num_tokens, pairs, consumer)

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model, block_index, num_blocks, consumer)
        self.window = config.window

    def features(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:
        k_BMTH, v_BMTH = self.keys_values(x_BTD, span.positions_BT)
        if state is None:
            return {"k": k_BMTH, "v": v_BMTH}
        found = {}
        num_past = min(self.window - 1, state["k"].shape[2], state.reach(0))
        for name, new_BMTH in (("k", k_BMTH), ("v", v_BMTH)):
            kept_BMTH = new_BMTH.to(state[name].dtype)
            past_BMLH = _past(state[name], span, num_past)
            found[name] = torch.cat([past_BMLH, kept_BMTH], 2).to(x_BTD.dtype)
            _write(state[name], kept_BMTH, span)
        return found

    def read(self, x_BTD: Tensor, shared: Features, span: Span) -> Tensor:
        q_BNTH = self.queries(x_BTD, span.positions_BT)
        k_BMSH, v_BMSH = shared["k"], shared["v"]
        time, num_keys = x_BTD.shape[1], k_BMSH.shape[2]
        alone = num_keys == time and span.segments_BT is None
        if alone and time <= self.window:
            return self.attend(x_BTD, q_BNTH, k_BMSH, v_BMSH, None)
        if alone and takes_windows(q_BNTH, len(q_BNTH), self.head_dim):
            y_BNTH = window_attention(q_BNTH, k_BMSH, v_BMSH, self.window, self.scale)
            return self.join(x_BTD, y_BNTH)
        chunk, num_past = max(self.window, min(MIN_CHUNK, time)), num_keys - time
        if not alone and time <= chunk:
            mask_B1Tk = self._allowed(span, time, num_past, num_past)
            return self.attend(x_BTD, q_BNTH, k_BMSH, v_BMSH, mask_B1Tk)
        tail = -(-time // chunk) * chunk - time
        front = 0 if alone else chunk - num_past
        q_BNSH = F.pad(q_BNTH, (0, 0, 0, tail))
        k_BMSH, v_BMSH = (F.pad(kv, (0, 0, front, tail)) for kv in (k_BMSH, v_BMSH))
        if alone:
            y_BNSH = self._alone(q_BNSH, k_BMSH, v_BMSH, chunk)
        else:
            mask_X1Cc = self._allowed(span, chunk, chunk, num_past)
            y_BNSH = self._in_pairs(q_BNSH, k_BMSH, v_BMSH, mask_X1Cc, chunk)
        return self.join(x_BTD, y_BNSH[:, :, :time])

    def _alone(self, q_BNSH: Tensor, k_BMSH: Tensor, v_BMSH: Tensor, chunk: int) -> Tensor:
        """One sequence a row, from its start: all chunks but the first share a small mask."""
        band_Cc = self._band(chunk, chunk, q_BNSH.device)
        q_BNCH, k_BMCH, v_BMCH = (x[:, :, :chunk] for x in (q_BNSH, k_BMSH, v_BMSH))
        y_BNCH = attention(q_BNCH, k_BMCH, v_BMCH, band_Cc[:, chunk:], self.scale)
        if q_BNSH.shape[2] == chunk:
            return y_BNCH
        later = self._in_pairs(q_BNSH[:, :, chunk:], k_BMSH, v_BMSH, band_Cc, chunk)
        return torch.cat([y_BNCH, later], 2)

    def _in_pairs(
        self, q_BNSH: Tensor, k_BMSH: Tensor, v_BMSH: Tensor, mask: Tensor, chunk: int
    ) -> Tensor:
        """Outputs (B, N, S, H) of chunks of queries that see a chunk of keys and the one before."""
        k_XMcH, v_XMcH = (_pairs_of_chunks(kv, chunk) for kv in (k_BMSH, v_BMSH))
        y_XNCH = attention(_chunks(q_BNSH, chunk), k_XMcH, v_XMcH, mask, self.scale)
        y_BnNCH: Tensor = y_XNCH.unflatten(0, (q_BNSH.shape[0], -1))
        return y_BnNCH.transpose(1, 2).flatten(2, 3)

    def _band(self, chunk: int, before: int, device: torch.device) -> Tensor:
        """Mask (C, c) of the window: a chunk of queries, `before` keys and the chunk's own."""
        query_C1 = torch.arange(chunk, device=device)[:, None]
        key_c = torch.arange(-before, chunk, device=device)
        return (key_c <= query_C1) & (key_c > query_C1 - self.window)

    def _allowed(self, span: Span, chunk: int, before: int, num_past: int) -> Tensor:
        """Mask (B n, 1, C, c): window, existence and sequence of each pair of a chunk."""
        positions_BT, device = span.positions_BT, span.positions_BT.device
        batch, time = positions_BT.shape
        num_chunks = -(-time // chunk)
        # Of the keys before the call, those down to position 0 exist.
        slots_S = torch.arange(-before, num_chunks * chunk, device=device)
        exists_BS = slots_S + positions_BT[:, :1].clamp(max=num_past) >= 0
        mask_BnCc = self._band(chunk, before, device) & _windows(exists_BS, chunk, before)
        if span.segments_BT is not None:
            tail = num_chunks * chunk - time
            segments_BS = F.pad(span.segments_BT, (before, tail), value=-2)
            own_BnC1 = segments_BS[:, before:].reshape(batch, num_chunks, chunk, 1)
            mask_BnCc = mask_BnCc & (own_BnC1 == _windows(segments_BS, chunk, before))
        return mask_BnCc.reshape(batch * num_chunks, 1, chunk, before + chunk)

    def step_features(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Features:
        k_BM1H, v_BM1H = self.keys_values(x_BD[:, None], positions_B[:, None])
        rows_B = torch.arange(x_BD.shape[0], device=x_BD.device)
        num_slots = state["k"].shape[2]
        slots_B = positions_B % num_slots
        filled = min(num_slots, state.reach(1))
        found = {}
        for name, new_BM1H in (("k", k_BM1H), ("v", v_BM1H)):
            state[name][rows_B, :, slots_B] = new_BM1H[:, :, 0].to(state[name].dtype)
            found[name] = state[name][:, :, :filled].to(x_BD.dtype)
        return found

    def step_read(self, x_BD: Tensor, shared: Features, positions_B: Tensor) -> Tensor:
        q_BN1H = self.queries(x_BD[:, None], positions_B[:, None])
        return self.attend_step(x_BD, q_BN1H, shared["k"], shared["v"], positions_B)

    def fast_form(self) -> CachedAttention | None:
        return self.cached_form(self.window)


def _past(ring_BMRH: Tensor, span: Span, num_past: int) -> Tensor:
    """The `num_past` keys before the call in order of position.

    Before position 0 there are none: what the ring holds in their place is masked (`_allowed`).
    """
    back_L = torch.arange(-num_past, 0, device=ring_BMRH.device)
    slots_BL = (span.positions_BT[:, :1] + back_L) % ring_BMRH.shape[2]
    index_BMLH = slots_BL[:, None, :, None].expand(-1, ring_BMRH.shape[1], -1, ring_BMRH.shape[3])
    return ring_BMRH.gather(2, index_BMLH)


def _write(ring_BMRH: Tensor, new_BMTH: Tensor, span: Span) -> None:
    """Each slot takes the last real token that belongs to it, if this call has one."""
    num_slots, time = ring_BMRH.shape[2], new_BMTH.shape[2]
    first_B1 = span.positions_BT[:, :1]
    count_B1 = time if span.lengths_B is None else span.lengths_B[:, None]
    last_B1 = first_B1 + count_B1 - 1
    slots_R = torch.arange(num_slots, device=ring_BMRH.device)
    at_BR = last_B1 - (last_B1 - slots_R) % num_slots - first_B1
    index_BMRH = at_BR.clamp(0, time - 1)[:, None, :, None].expand_as(ring_BMRH)
    new_BMRH = new_BMTH.gather(2, index_BMRH)
    ring_BMRH.copy_(torch.where((at_BR >= 0)[:, None, :, None], new_BMRH, ring_BMRH))


def _chunks(x_BNSH: Tensor, chunk: int) -> Tensor:
    """(B n, N, C, H): chunks become rows of the batch."""
    batch, heads, time, width = x_BNSH.shape
    x_BNnCH = x_BNSH.reshape(batch, heads, time // chunk, chunk, width)
    return x_BNnCH.transpose(1, 2).flatten(0, 1)


def _pairs_of_chunks(x_BMSH: Tensor, chunk: int) -> Tensor:
    """(B n, M, 2C, H): each chunk behind the one before it."""
    batch, heads, time, width = x_BMSH.shape
    x_BnMCH = x_BMSH.reshape(batch, heads, time // chunk, chunk, width).transpose(1, 2)
    return torch.cat([x_BnMCH[:, :-1], x_BnMCH[:, 1:]], 3).flatten(0, 1)


def _windows(x_BS: Tensor, chunk: int, before: int) -> Tensor:
    """(B, n, 1, c): each chunk's keys, for one value per key."""
    return x_BS.unfold(1, before + chunk, chunk)[:, :, None]
