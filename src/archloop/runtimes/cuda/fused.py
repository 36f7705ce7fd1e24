"""A decoder of the LFM2 kind run through fused GPU kernels, over its own weights and state.

`FusedDecoder(decoder)` copies nothing: it calls other kernels on the same parameters, and takes and
advances the same `DecoderState`, so that plain and fused calls may alternate on one state and each
is the other's check. `prefill` takes prompts in whole rows; `capture` records one decode step as a
CUDA graph, which replays without Python in the way.

Shape suffixes: B batch, T time, X flattened tokens, D model width, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from archloop.blocks.channel_mixers.moe import MoE
from archloop.blocks.channel_mixers.swiglu import SwiGLU
from archloop.blocks.mixers.gqa import GQA
from archloop.blocks.mixers.short_conv import ShortConv
from archloop.blocks.ops.rope import Rope
from archloop.stack import head
from archloop.stack.block import Block
from archloop.stack.cost import channel_config, mixer_config
from archloop.stack.decoder import Decoder, DecoderState, check_rows
from archloop.stack.spec import BlockSpec, StackSpec

TOKENS_PER_PASS = 32768
"""Tokens that a prefill takes through the blocks at once: bounds activations, fills the GPU."""

WARM_STEPS = 2
"""Decode steps run before one is captured."""

BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""Attention over a prompt, fastest on Hopper first."""


def unsupported(spec: StackSpec) -> str | None:
    """Why the fused kernels cannot run a spec; None when they can."""
    if spec.d_model % 128:
        return f"d_model={spec.d_model} is not a multiple of 128"
    if spec.embedding_multiplier != 1.0 or spec.logits_divisor != 1.0:
        return "embedding_multiplier and logits_divisor are not fused"
    for index, block in enumerate(spec.blocks):
        reason = _unsupported_block(block)
        if reason is None and block.channel_mixer is not None and block.channel_mixer.name == "moe":
            width = channel_config(block.channel_mixer).sizes(spec.d_model)["d_expert"]
            # Whole tiles of expert rows only: past an expert's last row comes the next expert.
            reason = f"expert width {width} is not a multiple of 128" if width % 128 else None
        if reason is not None:
            return f"blocks[{index}]: {reason}"
    return None


def _unsupported_block(block: BlockSpec) -> str | None:
    if len(block.mixers) != 1 or block.channel_mixer is None:
        return "the fused path wants one sequence mixer and a channel mixer"
    mixer = block.mixers[0]
    if mixer.name not in ("short_conv", "gqa") or mixer.config.get("bias"):
        return f"{mixer.name} {mixer.config} is not fused; short_conv without bias and gqa are"
    channel = block.channel_mixer
    if {mixer.input_multiplier, mixer.multiplier, channel.multiplier} != {1.0}:
        return "multipliers of branches are not fused"
    if {mixer.weights_from, mixer.state_from, channel.weights_from} != {None}:
        return "sharing between blocks is not fused"
    if mixer.name == "short_conv" and mixer.config.get("kernel", 3) == 1:
        return "a short_conv of kernel 1 has no state"
    if mixer.name == "gqa":
        config: Any = mixer_config(mixer)
        if not config.qk_norm or config.rope_theta is None or config.head_dim not in (64, 128):
            return "gqa is fused with QK-norm, RoPE and a head_dim of 64 or 128"
        if config.head_gate or config.rope != Rope(config.rope_theta):
            return "gates of heads, and RoPE that is partial or slowed down, are not fused"
    if block.channel_mixer.name not in ("swiglu", "moe"):
        return f"{block.channel_mixer.name} is not fused; swiglu and moe are"
    plain = {"router": "lfm2", "shared_expansion": 0.0, "activation": "swiglu"}
    for field, value in plain.items():
        if block.channel_mixer.config.get(field, value) != value:
            return f"moe.{field} is fused at {value!r} only"
    if block.post_norms or block.residual_multiplier != 1.0:
        return "post_norms and residual_multiplier are not fused"
    return None


class FusedDecoder:
    """Prefill and decode of `decoder` through fused kernels.

    Attributes:
        decoder: the model, whose parameters are used in place.
        counts_LE: pairs that each expert of each MoE block got in the last batched call, int32.
        overlap: let kernels of the batch-1 step start while the one before drains.

    Raises:
        ValueError: the spec cannot be fused, or Triton or a GPU is missing.
    """

    def __init__(self, decoder: Decoder, *, overlap: bool = True) -> None:
        reason = unsupported(decoder.spec)
        if reason is not None:
            raise ValueError(f"{reason}; call the decoder itself, which runs every spec")
        try:
            from archloop.runtimes.cuda.kernels import attention, experts, gemv, rows
        except ImportError as error:
            raise ValueError(
                "fused kernels need Triton, which CUDA builds of PyTorch bring along"
            ) from error
        self._attention, self._experts, self._gemv, self._rows = attention, experts, gemv, rows
        self.decoder = decoder.eval().requires_grad_(False)
        self.overlap = overlap
        self.blocks: list[Block] = list(decoder._blocks())
        self.moes = [i for i, b in enumerate(self.blocks) if isinstance(b.channel_mixer, MoE)]
        num_experts = max([self._moe(i).gate_up.shape[0] for i in self.moes], default=0)
        device = decoder.embedding.weight.device
        self.counts_LE = torch.zeros(len(self.moes), num_experts, dtype=torch.int32, device=device)
        self._tables: dict[tuple[int, float], tuple[Tensor, Tensor]] = {}
        self._table_rows = 0

    def init_state(self, batch_size: int, max_context: int) -> DecoderState:
        """An empty state with room for `max_context` tokens per row."""
        self._make_tables(max_context)
        return self.decoder.init_state(batch_size, max_context)

    # --- prompts ------------------------------------------------------------------------------

    @torch.no_grad()
    def prefill(
        self, ids_BT: Tensor, state: DecoderState, *, tokens_per_pass: int = TOKENS_PER_PASS
    ) -> Tensor:
        """Take in prompts of equal length; logits (B, V) after the last token.

        Args:
            ids_BT: token ids.
            state: continued in place.
            tokens_per_pass: rows are taken in groups of about this many tokens.

        Raises:
            ValueError: no tokens, no room, the state is for another number of rows, or its rows
                hold different numbers of tokens.
        """
        batch, time = ids_BT.shape
        if time == 0:
            raise ValueError("prefill needs at least one token in each row")
        check_rows(ids_BT, state)
        held = state.num_tokens
        if held + time > state.max_context:
            raise ValueError(
                f"the state has room for max_context={state.max_context} tokens, holds {held} "
                f"and was given {time} more; make a larger one with init_state"
            )
        if held and not bool((state.lengths_B == held).all()):
            raise ValueError("rows hold different numbers of tokens; use Decoder.prefill")
        self._make_tables(state.max_context)
        at_once = max(1, tokens_per_pass // time)
        last = [
            self._prefill_rows(ids_BT[start : start + at_once], state, start, held)
            for start in range(0, batch, at_once)
        ]
        state.lengths_B += time
        _advance(state, time)
        return head.logits(torch.cat(last), self._head())

    def _prefill_rows(self, ids_BT: Tensor, state: DecoderState, start: int, held: int) -> Tensor:
        """Final hidden states (B, D) of the last token of some rows."""
        batch, time = ids_BT.shape
        rows = slice(start, start + batch)
        x_XD = F.embedding(ids_BT.flatten(), self.decoder.embedding.weight)
        self.counts_LE.zero_()
        h_XD = self._rows.norm(x_XD, *_norm(self.blocks[0].mixer_norm))
        last = len(self.blocks) - 1
        for index in range(last):
            self._mix(index, x_XD, h_XD.view(batch, time, -1), state, rows, held)
            h_XD = self._channel(index, x_XD)
        x_BTD, h_BTD = x_XD.view(batch, time, -1), h_XD.view(batch, time, -1)
        mixer = self.blocks[last].mixers[0]
        if isinstance(mixer, ShortConv) and time > mixer.kernel:
            # Of the last block only the last token is wanted, which sees one kernel's length.
            x_BTD, h_BTD = (t[:, -mixer.kernel :].contiguous() for t in (x_BTD, h_BTD))
        self._mix(last, x_BTD.flatten(0, 1), h_BTD, state, rows, held)
        return self._channel(last, x_BTD[:, -1].contiguous())

    def _mix(
        self,
        index: int,
        x_XD: Tensor,
        h_BTD: Tensor,
        state: DecoderState,
        rows: slice,
        held: int,
    ) -> None:
        """Adds the mixer's output to `x_XD` in place."""
        mixer, own = self.blocks[index].mixers[0], state.mixers[index, 0]
        if isinstance(mixer, ShortConv):
            bcu_BTD = F.linear(h_BTD, mixer.in_proj.weight)
            y_BTD = self._rows.conv(bcu_BTD, mixer.conv, own["conv"][rows])
            x_XD.addmm_(y_BTD.flatten(0, 1), mixer.out_proj.weight.T)
            return
        assert isinstance(mixer, GQA)
        time = h_BTD.shape[1]
        qkv_BTH = F.linear(h_BTD, mixer.qkv_proj.weight)
        k_BMCH, v_BMCH = own["k"][rows], own["v"][rows]
        lengths_B = state.lengths_B[rows]
        norms, tables = _qk_norms(mixer), self._table(mixer)
        self._attention.store(qkv_BTH, norms, tables, k_BMCH, v_BMCH, lengths_B)
        width = mixer.num_heads * mixer.head_dim
        q_BNTH = qkv_BTH[..., :width].unflatten(-1, (-1, mixer.head_dim)).transpose(1, 2)
        k_BMSH, v_BMSH = k_BMCH[:, :, : held + time], v_BMCH[:, :, : held + time]
        mask = causal_lower_right(time, held + time) if held else None
        with sdpa_kernel(BACKENDS, set_priority=True):
            y_BNTH = F.scaled_dot_product_attention(
                q_BNTH, k_BMSH, v_BMSH, attn_mask=mask, is_causal=mask is None,
                scale=mixer.scale, enable_gqa=True,
            )  # fmt: skip
        x_XD.addmm_(y_BNTH.transpose(1, 2).reshape(-1, width), mixer.out_proj.weight.T)

    def _channel(self, index: int, x_XD: Tensor) -> Tensor:
        """Adds the channel mixer's output in place; the normed input of what comes next."""
        block, after = self.blocks[index], _norm(self._norm_after(index))
        h_XD = self._rows.norm(x_XD, *_norm(block.channel_norm))
        mixer = block.channel_mixer
        if isinstance(mixer, SwiGLU):
            for h, x in zip(h_XD.split(TOKENS_PER_PASS), x_XD.split(TOKENS_PER_PASS), strict=True):
                hidden = self._rows.silu_mul(F.linear(h, mixer.gate_up_proj.weight))
                x.addmm_(hidden, mixer.down_proj.weight.T)
            return self._rows.norm(x_XD, *after)
        assert isinstance(mixer, MoE)
        counts_E = self.counts_LE[self.moes.index(index)]
        weights_P, bins_EX = self._experts.route(
            F.linear(h_XD, mixer.router.weight), self._bias(mixer), counts_E,
            mixer.config.top_k, normalize=mixer.config.normalize,
            routed_scale=mixer.config.routed_scale,
        )  # fmt: skip
        y_XKD = self._experts.experts(h_XD, weights_P, bins_EX, counts_E, mixer.gate_up, mixer.down)
        return self._experts.join(x_XD, y_XKD, *after)

    # --- one token ----------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, ids_B: Tensor, state: DecoderState) -> Tensor:
        """One token per row; logits (B, V) for the next.

        Raises:
            ValueError: the state is full, or is for another number of rows.
        """
        check_rows(ids_B, state)
        if state.num_tokens >= state.max_context:
            raise ValueError(
                f"the state is full at max_context={state.max_context}; make a larger one"
            )
        self._make_tables(state.max_context)
        logits_BV = self._logits_of_step(ids_B, state)
        self._rows.choose_greedily(logits_BV, torch.empty_like(ids_B), state.lengths_B)
        _advance(state, 1)
        return logits_BV

    def capture(self, state: DecoderState) -> "StepGraph":
        """Record a decode step over `state` as a CUDA graph."""
        self._make_tables(state.max_context)
        return StepGraph(self, state)

    def _logits_of_step(self, ids_B: Tensor, state: DecoderState) -> Tensor:
        x_BD = F.embedding(ids_B, self.decoder.embedding.weight)
        if ids_B.shape[0] == 1:
            for index in range(len(self.blocks)):
                self._mix_one(index, x_BD[0], state)
                self._channel_one(index, x_BD[0])
            logits_V = x_BD.new_empty(self._head().shape[0], dtype=torch.float32)
            norm = _norm(self.decoder.norm)
            self._gemv.linear(x_BD[0], self._head(), logits_V, norm=norm, pdl=self.overlap)
            return logits_V[None]
        self.counts_LE.zero_()
        h_BD = self._rows.norm(x_BD, *_norm(self.blocks[0].mixer_norm))
        for index in range(len(self.blocks)):
            self._mix_step(index, x_BD, h_BD, state)
            h_BD = self._channel(index, x_BD)
        return head.logits(h_BD, self._head())

    def _mix_step(self, index: int, x_BD: Tensor, h_BD: Tensor, state: DecoderState) -> None:
        mixer, own = self.blocks[index].mixers[0], state.mixers[index, 0]
        if isinstance(mixer, ShortConv):
            bcu_BD = F.linear(h_BD, mixer.in_proj.weight)
            y_BD = self._rows.conv_step(bcu_BD, mixer.conv, own["conv"])
        else:
            assert isinstance(mixer, GQA)
            y_BD = self._attention.step(
                F.linear(h_BD, mixer.qkv_proj.weight), _qk_norms(mixer), self._table(mixer),
                own["k"], own["v"], state.lengths_B, mixer.scale,
            )  # fmt: skip
        x_BD.addmm_(y_BD, mixer.out_proj.weight.T)

    def _mix_one(self, index: int, x_D: Tensor, state: DecoderState) -> None:
        """The mixer at batch 1, added to `x_D` in place."""
        block, own = self.blocks[index], state.mixers[index, 0]
        mixer, norm = block.mixers[0], _norm(block.mixer_norm)
        if isinstance(mixer, ShortConv):
            weight = mixer.in_proj.weight
            y_D = torch.empty_like(x_D)
            self._gemv.conv(x_D, norm, weight, mixer.conv, own["conv"][0], y_D, pdl=self.overlap)
        else:
            assert isinstance(mixer, GQA)
            weight = mixer.qkv_proj.weight
            qkv = x_D.new_empty(weight.shape[0])
            self._gemv.linear(x_D, weight, qkv, norm=norm, pdl=self.overlap)
            y_D = self._attention.step(
                qkv[None], _qk_norms(mixer), self._table(mixer), own["k"], own["v"],
                state.lengths_B, mixer.scale, pdl=self.overlap,
            )[0]  # fmt: skip
        self._gemv.linear(y_D, mixer.out_proj.weight, x_D, residual=True, pdl=self.overlap)

    def _channel_one(self, index: int, x_D: Tensor) -> None:
        block = self.blocks[index]
        mixer, norm = block.channel_mixer, _norm(block.channel_norm)
        if isinstance(mixer, SwiGLU):
            down = mixer.down_proj.weight
            hidden_F = x_D.new_empty(down.shape[1])
            self._gemv.gate_up(x_D, norm, mixer.gate_up_proj.weight, hidden_F, pdl=self.overlap)
            self._gemv.linear(hidden_F, down, x_D, residual=True, pdl=self.overlap)
            return
        assert isinstance(mixer, MoE)
        config, bias_E = mixer.config, self._bias(mixer)
        logits_E = x_D.new_empty(mixer.router.weight.shape[0])
        self._gemv.linear(x_D, mixer.router.weight, logits_E, norm=norm, pdl=self.overlap)
        hidden_KF = x_D.new_empty(config.top_k, mixer.down.shape[2])
        self._gemv.experts_up(
            x_D, norm, logits_E, bias_E, mixer.gate_up, hidden_KF, pdl=self.overlap
        )
        self._gemv.experts_down(
            hidden_KF, logits_E, bias_E, mixer.down, x_D, normalize=config.normalize,
            routed_scale=config.routed_scale, pdl=self.overlap,
        )  # fmt: skip

    # --- parts --------------------------------------------------------------------------------

    def _head(self) -> Tensor:
        head = self.decoder.head
        return self.decoder.embedding.weight if head is None else head.weight

    def _moe(self, index: int) -> MoE:
        mixer = self.blocks[index].channel_mixer
        assert isinstance(mixer, MoE)
        return mixer

    def _bias(self, moe: MoE) -> Tensor:
        """The selection bias; zeros when the router has none."""
        return moe.expert_bias if moe.config.use_bias else torch.zeros_like(moe.expert_bias)

    def _norm_after(self, index: int) -> Any:
        last = index + 1 == len(self.blocks)
        return self.decoder.norm if last else self.blocks[index + 1].mixer_norm

    def _table(self, mixer: GQA) -> tuple[Tensor, Tensor]:
        assert mixer.rope_theta is not None
        return self._tables[mixer.head_dim, mixer.rope_theta]

    def _make_tables(self, max_context: int) -> None:
        """RoPE tables for every attention of the stack, as long as the longest state so far."""
        if max_context <= self._table_rows:
            return
        for block in self.blocks:
            mixer = block.mixers[0]
            if isinstance(mixer, GQA) and mixer.rope_theta is not None:
                self._tables[mixer.head_dim, mixer.rope_theta] = self._attention.rope_tables(
                    max_context, mixer.head_dim, mixer.rope_theta, mixer.qkv_proj.weight.device
                )
        self._table_rows = max_context


class StepGraph:
    """One decode step over one state, as a CUDA graph.

    Attributes:
        state: the state that every step advances.
        ids_B: ids that the next step takes in; after a step, the most likely next ones.
        logits_BV: of the last step.
    """

    def __init__(self, fused: FusedDecoder, state: DecoderState) -> None:
        self.state = state
        self.ids_B = torch.zeros_like(state.lengths_B)
        self._fused = fused
        touched = [t for part in self._touched() for t in part]
        before = [t.clone() for t in touched]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            # Kernels compile, and libraries make their handles, before anything is recorded.
            for _ in range(WARM_STEPS):
                # Each in the first slot, which the smallest state has too.
                state.lengths_B.zero_()
                self._record()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), torch.no_grad():
            self.logits_BV = self._record()
        for tensor, old in zip(touched, before, strict=True):
            tensor.copy_(old)

    def _touched(self) -> Iterator[list[Tensor]]:
        """What steps from an empty state overwrite: not a copy of the whole KV cache."""
        yield [self.state.lengths_B]
        for (index, _), own in self.state.mixers.items():
            if isinstance(self._fused.blocks[index].mixers[0], GQA):
                yield [own[name][:, :, :1] for name in ("k", "v")]
            else:
                yield list(own.tensors.values())

    def _record(self) -> Tensor:
        logits_BV = self._fused._logits_of_step(self.ids_B, self.state)
        self._fused._rows.choose_greedily(logits_BV, self.ids_B, self.state.lengths_B)
        return logits_BV

    def step(self, ids_B: Tensor | None = None) -> Tensor:
        """Take in one token per row; logits (B, V), overwritten by the next step.

        Args:
            ids_B: the tokens; None takes the most likely ones of the step before.

        Raises:
            ValueError: the state is full, or is for another number of rows.
        """
        if self.state.num_tokens >= self.state.max_context:
            raise ValueError(f"the state is full at max_context={self.state.max_context}")
        if ids_B is not None:
            check_rows(ids_B, self.state)
            self.ids_B.copy_(ids_B)
        self._graph.replay()
        _advance(self.state, 1)
        return self.logits_BV


def _advance(state: DecoderState, num_tokens: int) -> None:
    """Host-side count of tokens; the device's own was advanced with them."""
    state.num_tokens += num_tokens
    for mixer in state.mixers.values():
        mixer.num_tokens += num_tokens


def _norm(norm: Any) -> tuple[Tensor, float]:
    return norm.weight, norm.eps


def _qk_norms(mixer: GQA) -> tuple[Tensor, Tensor, float]:
    q_norm: Any = mixer.q_norm
    k_norm: Any = mixer.k_norm
    return q_norm.weight, k_norm.weight, q_norm.eps
