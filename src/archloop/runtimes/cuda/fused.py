"""Any decoder run half a block at a time, by fused GPU kernels where there are some.

`FusedDecoder(decoder)` copies nothing: it calls other kernels on the same parameters, and takes and
advances the same `DecoderState`, so that plain and fused calls may alternate on one state and each
is the other's check. A mixer or channel mixer that hands over a form with kernels (`blocks.fast`)
runs through them; every other runs its own code, between them. `prefill` takes prompts in whole
rows; `capture` records one decode step as a CUDA graph, which replays without Python in the way.

Shape suffixes: B batch, T time, X flattened tokens, D model width, V vocabulary.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archloop.blocks.fast import CachedAttention, GatedConv, GatedFeedForward, RoutedExperts
from archloop.runtimes.cuda.choice import Choice
from archloop.runtimes.cuda.compiled import CompiledChannel, CompiledMixer, by_itself
from archloop.runtimes.cuda.graph import StepGraph
from archloop.runtimes.cuda.half import Call, Half, PlainChannel, PlainMixer
from archloop.runtimes.cuda.row import Norm, Row
from archloop.runtimes.cuda.side import WholeStack
from archloop.stack.block import Block
from archloop.stack.cost import reads_embedding
from archloop.stack.decoder import Decoder
from archloop.stack.state import DecoderState, check_rows, full

if TYPE_CHECKING:
    from archloop.runtimes.cuda.attention import RopeTables

TOKENS_PER_PASS = 32768
"""Tokens that a prefill takes through the blocks at once: bounds activations, fills the GPU."""

WIDTH_MULTIPLE = 64
"""Widths of the stream and of projections that the kernels take."""
EXPERT_MULTIPLE = 128
"""Widths of the stream and of an expert that the experts' kernels take: whole tiles."""
TILE_BYTES = 192 << 10
"""Shared memory that the largest of these tiles takes, all stages of its loads."""
OVERLAPS_FROM = (9, 0)
"""Compute capability of cards with the instructions by which a kernel waits for the one before."""


class FusedDecoder:
    """Prefill and decode of `decoder`, through fused kernels where there are some.

    Args:
        decoder: the model, whose parameters are used in place.
        overlap: let kernels of the batch-1 step start while the one before drains, on cards that
            can (`OVERLAPS_FROM`).
        kernels: False runs every half by its own code, which needs neither Triton nor a GPU.
        compiles: a captured step of a half without kernels is compiled.

    Attributes:
        halves: of all blocks, in order; `of_mixers` and `of_channels` have them by block.
        moes: blocks whose experts are fused.
        counts_LE: pairs that each expert of each of these got in the last batched call, int32.

    Raises:
        ValueError: Triton is missing.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        overlap: bool = True,
        kernels: bool = True,
        compiles: bool = True,
    ) -> None:
        self.compiles = compiles
        self.decoder = decoder.eval().requires_grad_(False)
        self.blocks: list[Block] = list(decoder.each_block())
        self.has_kernels = kernels and decoder.spec.d_model % WIDTH_MULTIPLE == 0
        self.overlap = overlap and _overlaps(decoder.embedding.weight.device)
        self._tables: RopeTables | None = None
        if self.has_kernels:
            self._import_kernels()
        self.moes = [i for i, block in enumerate(self.blocks) if self._routed(block) is not None]
        forms = [form for i in self.moes if (form := self._routed(self.blocks[i])) is not None]
        device = decoder.embedding.weight.device
        num_experts = max((form.router.shape[0] for form in forms), default=0)
        self.counts_LE = torch.zeros(len(self.moes), num_experts, dtype=torch.int32, device=device)
        self.halves: list[Half] = []
        self.of_mixers: dict[int, Half] = {}
        self.of_channels: dict[int, Half] = {}
        # Halves of blocks hand on the stream alone, no embedding and nothing that side blocks made.
        if reads_embedding(decoder.spec) or any(block.spec.side for block in self.blocks):
            self.halves.append(WholeStack(decoder, _norm(decoder.norm)))
            return
        for index, block in enumerate(self.blocks):
            if block.mixer_norm is not None:
                self.of_mixers[index] = self._mixer_half(index, block)
                self.halves.append(self.of_mixers[index])
            if block.channel_norm is not None:
                self.of_channels[index] = self._channel_half(index, block)
                self.halves.append(self.of_channels[index])

    def _import_kernels(self) -> None:
        try:
            from archloop.runtimes.cuda.attention import RopeTables
            from archloop.runtimes.cuda.kernels import gemv, rows
        except ImportError as error:
            raise ValueError(
                "fused kernels need Triton, which CUDA builds of PyTorch bring along"
            ) from error
        self._gemv, self._rows = gemv, rows
        self._tables = RopeTables(self.decoder.embedding.weight.device)

    # --- which half runs how ------------------------------------------------------------------

    def _mixer_half(self, index: int, block: Block) -> Half:
        norm, post_norm = _norm(block.mixer_norm), _norm_or_none(block.mixer_post_norm)
        form = self._mixer_form(index, block)
        if isinstance(form, GatedConv):
            from archloop.runtimes.cuda.conv import ConvHalf

            plain = PlainMixer(self.decoder, index, block, norm)
            return ConvHalf(plain, form, (index, 0), norm, post_norm, self.overlap)
        if isinstance(form, CachedAttention):
            from archloop.runtimes.cuda.attention import AttentionHalf, WindowHalf

            assert self._tables is not None
            arguments = form, (index, 0), norm, post_norm, self.overlap, self._tables
            if form.window is not None:
                return WindowHalf(PlainMixer(self.decoder, index, block, norm), *arguments)
            return AttentionHalf(*arguments)
        if self.compiles and by_itself(self.decoder, index, block):
            return CompiledMixer(self.decoder, index, block, norm)
        return PlainMixer(self.decoder, index, block, norm)

    def _mixer_form(self, index: int, block: Block) -> Any:
        """The form of a block's mixer, where kernels can run it between norm and residual."""
        if not self.has_kernels or not self._alone(index, block):
            return None
        form = self.decoder.mixer(index, 0).fast_form()
        if isinstance(form, CachedAttention):
            from archloop.runtimes.cuda.attention import HEAD_DIMS

            width = form.num_heads * form.head_dim
            return form if form.head_dim in HEAD_DIMS and width % WIDTH_MULTIPLE == 0 else None
        return form

    def _alone(self, index: int, block: Block) -> bool:
        """Whether a block has one mixer, read by nobody else, whose output is added unscaled."""
        if len(block.mixers) != 1 or block.output_norms:
            return False
        mixer = block.spec.mixers[0]
        if {mixer.input_multiplier, mixer.multiplier, block.spec.residual_multiplier} != {1.0}:
            return False
        return mixer.state_from is None and not self.decoder.is_source(index, 0)

    def _channel_half(self, index: int, block: Block) -> Half:
        norm, post_norm = _norm(block.channel_norm), _norm_or_none(block.channel_post_norm)
        form = self._channel_form(block)
        if isinstance(form, GatedFeedForward):
            from archloop.runtimes.cuda.feed_forward import FeedForwardHalf

            return FeedForwardHalf(form, norm, post_norm, self.overlap)
        if isinstance(form, RoutedExperts):
            from archloop.runtimes.cuda.experts import ExpertsHalf

            counts_E = self.counts_LE[self.moes.index(index), : form.router.shape[0]]
            return ExpertsHalf(form, norm, self.overlap, counts_E)
        channel = block.channel_mixer
        if self.compiles and channel is not None and not channel.asks_host:
            return CompiledChannel(block, norm)
        return PlainChannel(block, norm)

    def _channel_form(self, block: Block) -> Any:
        """The form of a block's channel mixer, where kernels can run it in its place."""
        channel, module = block.spec.channel_mixer, block.channel_mixer
        if not self.has_kernels or channel is None or module is None:
            return None
        if {channel.multiplier, block.spec.residual_multiplier} != {1.0}:
            return None
        form = module.fast_form()
        if not isinstance(form, RoutedExperts):
            return form
        # Whole tiles of expert rows only: past an expert's last row comes the next expert. And the
        # kernel that joins the experts' outputs adds them to the stream itself.
        is_whole = all(width % EXPERT_MULTIPLE == 0 for width in form.down.shape[1:])
        runs = is_whole and block.channel_post_norm is None and _has_room(form.down.device)
        return form if runs else None

    def _routed(self, block: Block) -> RoutedExperts | None:
        form = self._channel_form(block)
        return form if isinstance(form, RoutedExperts) else None

    # --- prompts ------------------------------------------------------------------------------

    def init_state(self, batch_size: int, max_context: int) -> DecoderState:
        """An empty state with room for `max_context` tokens per row."""
        self._reach(max_context)
        return self.decoder.init_state(batch_size, max_context)

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
        self.check_prompt(ids_BT, state)
        batch, time = ids_BT.shape
        at_once = max(1, tokens_per_pass // time)
        last = [
            self._last_hidden(ids_BT[start : start + at_once], state, start)
            for start in range(0, batch, at_once)
        ]
        state.lengths_B += time
        state.recount(state.num_tokens + time)
        return self.decoder.logits(torch.cat(last))

    def check_prompt(self, ids_BT: Tensor, state: DecoderState) -> None:
        """Raise the errors of `prefill`, and make what a prompt reads as long as the state."""
        time, held = ids_BT.shape[1], state.num_tokens
        if time == 0:
            raise ValueError("prefill needs at least one token in each row")
        check_rows(ids_BT, state)
        if held + time > state.max_context:
            raise full(state, time)
        if held and not bool((state.lengths_B == held).all()):
            raise ValueError("rows hold different numbers of tokens; use Decoder.prefill")
        self._reach(state.max_context)

    @torch.no_grad()
    def run_prompt(self, ids_BT: Tensor, state: DecoderState, real_B: Tensor | None) -> Tensor:
        """What `prefill` computes, in one group, without checks and without counting.

        Args:
            ids_BT: token ids, padded on the right.
            state: with room for all T.
            real_B: how many ids of each row are no padding, on the device; None: all.
        """
        return self.decoder.logits(self._last_hidden(ids_BT, state, 0, real_B))

    @property
    def captures_prompts(self) -> bool:
        """Whether a prompt can be recorded: no half waits for the card to go on."""
        on_card = self.decoder.embedding.weight.is_cuda
        return on_card and not any(half.asks_host for half in self.halves)

    def _last_hidden(
        self, ids_BT: Tensor, state: DecoderState, start: int, real_B: Tensor | None = None
    ) -> Tensor:
        """Final hidden states (B, D) of the last token of the rows from `start` on."""
        batch, time = ids_BT.shape
        x_XD = self.decoder.embed(ids_BT.flatten())
        h_XD: Tensor | None = None
        self.counts_LE.zero_()
        rows = state.rows(slice(start, start + batch))
        call = Call(rows, state.num_tokens, time, real_B)
        last_mixer = max((at for at, half in enumerate(self.halves) if half.is_mixer), default=-1)
        for at, half in enumerate(self.halves):
            h_XD = self._normed(x_XD, h_XD, half)
            if at == last_mixer and real_B is None and (tail := half.tail(time)) < time:
                # Only the last token is wanted from here on, and it sees no further back.
                x_XD = _last(x_XD, time, tail)
                h_XD = None if h_XD is None else _last(h_XD, time, tail)
                call = replace(call, time=tail)
            h_XD = half.rows(x_XD, h_XD, call, self._norm_after(at))
            if at == last_mixer:
                x_XD = _last(x_XD, call.time or 1, 1, real_B)
                h_XD = None if h_XD is None else _last(h_XD, call.time or 1, 1, real_B)
                call = replace(call, time=1, real_B=None)
        if last_mixer < 0:
            x_XD, h_XD = _last(x_XD, time, 1, real_B), None
        return self._last_normed(x_XD, h_XD)

    # --- one token ----------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, ids_B: Tensor, state: DecoderState) -> Tensor:
        """One token per row; logits (B, V) for the next.

        Raises:
            ValueError: the state is full, or is for another number of rows.
        """
        check_rows(ids_B, state)
        if state.num_tokens >= state.max_context:
            raise full(state, 1)
        self._reach(state.max_context)
        held = state.num_tokens
        logits_BV = self._logits_of_step(ids_B, state)
        self._choose(logits_BV, Choice.of_rows(state.lengths_B), state)
        state.recount(held + 1)
        return logits_BV

    def capture(self, state: DecoderState) -> StepGraph:
        """Record a decode step over `state` as a CUDA graph."""
        self._reach(state.max_context)
        touched = [tensor for half in self.halves for tensor in half.touched(state)]

        def run(choice: Choice) -> Tensor:
            logits_BV = self._logits_of_step(choice.ids_B, state)
            self._choose(logits_BV, choice, state)
            return logits_BV

        return StepGraph(state, run, touched, self.tables())

    def tables(self) -> list[Tensor]:
        """What passes read besides parameters and state.

        A longer state takes other tables, so whoever records a pass keeps those that it reads.
        """
        return [] if self._tables is None else self._tables.held()

    def _logits_of_step(self, ids_B: Tensor, state: DecoderState) -> Tensor:
        """As `step`, without counting the tokens; `_choose` counts them on the device."""
        x_BD, call = self.decoder.embed(ids_B), Call(state)
        if ids_B.shape[0] == 1 and self.has_kernels:
            row = Row(x_BD[0], self.overlap)
            for half in self.halves:
                half.one(row, call)
            return self._logits_of_one(row)[None]
        self.counts_LE.zero_()
        h_BD: Tensor | None = None
        for at, half in enumerate(self.halves):
            h_BD = half.rows(x_BD, self._normed(x_BD, h_BD, half), call, self._norm_after(at))
        return self.decoder.logits(self._last_normed(x_BD, h_BD))

    def _choose(self, logits_BV: Tensor, choice: Choice, state: DecoderState) -> None:
        """Take each row's most likely token, and count one more token a row."""
        if self.has_kernels:
            self._rows.choose_greedily(logits_BV, choice, state.lengths_B)
            return
        choice.take(logits_BV)
        state.lengths_B += 1

    # --- parts --------------------------------------------------------------------------------

    @torch.no_grad()
    def add(self, half: Half, x_XD: Tensor, call: Call) -> None:
        """Run one half alone: its output is added to the stream in place."""
        half.rows(x_XD, self._normed(x_XD, None, half), call, half.norm)

    @torch.no_grad()
    def add_one(self, half: Half, x_D: Tensor, call: Call) -> None:
        """As `add` in a decode step of one row, by the kernels of such a step."""
        row = Row(x_D)
        half.one(row, call)
        x_D.copy_(row.settled())

    def _normed(self, x_XD: Tensor, h_XD: Tensor | None, half: Half) -> Tensor | None:
        """The stream as `half` reads it; `h_XD` if the half before has normed it already."""
        if not half.is_fused:
            return None
        return self._rows.norm(x_XD, *half.norm) if h_XD is None else h_XD

    def _last_normed(self, x_XD: Tensor, h_XD: Tensor | None) -> Tensor:
        """The stream after the last norm."""
        if h_XD is not None:
            return h_XD
        if not self.has_kernels:
            return self.decoder.norm(x_XD)
        return self._rows.norm(x_XD, *_norm(self.decoder.norm))

    def _norm_after(self, at: int) -> Norm:
        last = at + 1 == len(self.halves)
        return _norm(self.decoder.norm) if last else self.halves[at + 1].norm

    def _logits_of_one(self, row: Row) -> Tensor:
        """Logits (V,) of one row, the last norm and the head in one kernel."""
        head_VD = self.decoder.output_weight
        logits_V = row.x_D.new_empty(head_VD.shape[0], dtype=torch.float32)
        norm = _norm(self.decoder.norm)
        self._gemv.linear(row.read(), head_VD, logits_V, norm=norm, pdl=self.overlap)
        divisor = self.decoder.spec.logits_divisor
        return logits_V if divisor == 1.0 else logits_V / divisor

    def _reach(self, max_context: int) -> None:
        if self._tables is not None:
            self._tables.reach(max_context)


def _has_room(device: torch.device) -> bool:
    """Whether a processor of the card holds the experts' tiles, as those before Hopper do not."""
    if device.type != "cuda":
        return True
    return torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor > TILE_BYTES


def _overlaps(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= OVERLAPS_FROM


def _norm(norm: Any) -> Norm:
    return norm.scale, norm.eps


def _norm_or_none(norm: Any) -> Norm | None:
    return None if norm is None else _norm(norm)


def _last(x_XD: Tensor, time: int, num: int, real_B: Tensor | None = None) -> Tensor:
    """The last tokens of each row, of `time` tokens each or, of which one, of `real_B`."""
    x_BTD = x_XD.view(-1, time, x_XD.shape[-1])
    if real_B is not None:
        assert num == 1, "rows of different lengths have one last token each"
        return x_BTD[torch.arange(x_BTD.shape[0], device=x_XD.device), real_B - 1]
    return x_BTD[:, -num:].flatten(0, 1).contiguous()
