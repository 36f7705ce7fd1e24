"""The decoder: a stack spec built as one PyTorch module, with prefill and decode over a state.

Training calls the decoder on token ids. Inference makes a state once, then alternates `prefill`
(any number of tokens at once, in chunks, ragged rows) and `step` (one token per row).

Shape suffixes: B batch, T time, D model width, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archloop.blocks.base import Config, Features, SequenceMixer, SharingMixer, Span
from archloop.blocks.linear import Linear
from archloop.blocks.norms import RMSNorm
from archloop.blocks.ops.precision import product_dtype
from archloop.blocks.packing import runs, segment_positions, unpack
from archloop.blocks.span import align_right_padding, check_marks
from archloop.blocks.stream import Stream
from archloop.stack import head
from archloop.stack.block import Block
from archloop.stack.cost import channel_config, mixer_config, mixers, reads_embedding
from archloop.stack.spec import StackSpec
from archloop.stack.state import DecoderState, MixerKey, check_rows, full
from archloop.text.special_tokens import SpecialTokens


class Decoder(nn.Module):
    """The built model. `spec` says everything about it.

    Attributes:
        special_tokens: those that its checkpoint names; None for a decoder of random weights.

    Raises:
        UserError: the spec names an unknown mixer or a setting that cannot be built.
    """

    def __init__(self, spec: StackSpec) -> None:
        super().__init__()
        self.spec = spec
        self.special_tokens: SpecialTokens | None = None
        self.embedding = nn.Embedding(spec.vocab_size, spec.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(
            Block(block, spec, index) for index, block in enumerate(spec.blocks)
        )
        self.norm = RMSNorm(spec.d_model, spec.norm_eps, offset=spec.norm_offset)
        self.head = None if spec.tie_embeddings else Linear(spec.d_model, spec.vocab_size)
        self._share_weights()
        self._reads_embedding = reads_embedding(spec)
        self._sources = frozenset(
            (mixer.state_from, slot)
            for _, slot, mixer in mixers(spec)
            if mixer.state_from is not None
        )
        """Mixers whose features other blocks read."""
        self._shares_packed = all(self.mixer(*key).packs for key in self._sources)
        """False where a source needs packed rows taken apart for it."""

    def _share_weights(self) -> None:
        for index, slot, mixer in mixers(self.spec):
            if mixer.weights_from is not None:
                source = self._block(mixer.weights_from).mixers[slot]
                borrowers = self._block(index).mixers
                borrowers[slot] = _lent(source, borrowers[slot], mixer_config(mixer))
        for index, spec in enumerate(self.spec.blocks):
            channel, block = spec.channel_mixer, self._block(index)
            if channel is not None and channel.weights_from is not None:
                lender = self._block(channel.weights_from).channel_mixer
                assert lender is not None
                assert block.channel_mixer is not None
                config = channel_config(channel)
                block.channel_mixer = _lent(lender, block.channel_mixer, config)
            if spec.norms_from is not None:
                block.take_norms(self._block(spec.norms_from))

    @property
    def vocab_size(self) -> int:
        """Token ids run from 0 to this, exclusive."""
        return self.spec.vocab_size

    @property
    def precision(self) -> str:
        """Dtype of the weights, such as ``bfloat16``."""
        return str(self.embedding.weight.dtype).removeprefix("torch.")

    # --- training and scoring -----------------------------------------------------------------

    def forward(
        self,
        ids_BT: Tensor,
        state: DecoderState | None = None,
        *,
        segments_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
        logits: Literal["all", "last"] = "all",
    ) -> Tensor:
        """Logits, (B, T, V) or with ``logits="last"`` (B, V) of each row's last real token.

        Args:
            ids_BT: token ids.
            state: None in training; otherwise the tokens continue it and it is advanced in place.
            segments_BT: which sequence each token of a packed training row belongs to, one for
                each run of equal ids.
            mask_BT: True at real tokens; logits at padding mean nothing.
            logits: of every token, or of the last.

        Raises:
            ValueError: no tokens, or arguments whose shapes do not agree; the state has no room for
                the tokens; a row whose last token is asked for has no real one.
        """
        if logits == "last":
            _check_real(ids_BT, mask_BT)
        x_BTD = self.hidden(ids_BT, state, segments_BT=segments_BT, mask_BT=mask_BT)
        if logits == "last":
            last_B = _last_index(ids_BT, mask_BT)
            x_BTD = x_BTD[torch.arange(ids_BT.shape[0], device=ids_BT.device), last_B]
        return self.logits(x_BTD)

    def hidden(
        self,
        ids_BT: Tensor,
        state: DecoderState | None = None,
        *,
        segments_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states after the last norm, (B, T, D). Arguments as `forward`."""
        if state is not None and torch.is_grad_enabled():
            with torch.no_grad():
                return self.hidden(ids_BT, state, segments_BT=segments_BT, mask_BT=mask_BT)
        _check_ids(ids_BT)
        check_marks(ids_BT.shape, segments_BT=segments_BT, mask_BT=mask_BT)
        order_BT, span, held = self._span(ids_BT, state, segments_BT, mask_BT)
        if order_BT is not None:
            ids_BT = ids_BT.gather(1, order_BT)
        if span.segments_BT is not None and not self._shares_packed:
            sequences = unpack(span.segments_BT)
            alone = Span(sequences.positions_NT)
            x_NTD = self.through_blocks(sequences.split(ids_BT), None, alone)
            x_BTD = sequences.join(x_NTD, *ids_BT.shape)
        else:
            x_BTD = self.through_blocks(ids_BT, state, span)
        if state is not None:
            counts = ids_BT.shape[1] if span.lengths_B is None else span.lengths_B
            state.lengths_B += counts
            state.recount(held)
        if order_BT is not None:
            index_BTD = order_BT[..., None].expand_as(x_BTD)
            x_BTD = torch.zeros_like(x_BTD).scatter(1, index_BTD, x_BTD)
        return x_BTD

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings of token ids, any shape: the start of the residual stream."""
        x = F.embedding(ids, self.embedding.weight)
        x = x.to(product_dtype(x))
        multiplier = self.spec.embedding_multiplier
        return x if multiplier == 1.0 else x * multiplier

    def stream(self, ids: Tensor) -> Stream:
        """The residual stream of token ids, any shape, before the first block."""
        x = self.embed(ids)
        return Stream(x, x if self._reads_embedding else None)

    @property
    def output_weight(self) -> Tensor:
        """What hidden states are multiplied by, (V, D)."""
        return self.embedding.weight if self.head is None else self.head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of final hidden states (..., D), in float32 or wider without grad."""
        logits = head.logits(hidden, self.output_weight)
        divisor = self.spec.logits_divisor
        return logits if divisor == 1.0 else logits / divisor

    # --- inference ----------------------------------------------------------------------------

    def init_state(
        self,
        batch_size: int,
        max_context: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> DecoderState:
        """An empty state with room for `max_context` tokens per row; defaults as the weights'.

        Raises:
            ValueError: no rows, or no room.
        """
        if batch_size < 1 or max_context < 1:
            raise ValueError(f"{batch_size=} and {max_context=} must be at least 1")
        device = device or self.embedding.weight.device
        states = {
            (index, slot): self.mixer(index, slot).init_state(
                batch_size, max_context, dtype, device
            )
            for index, slot, mixer in mixers(self.spec)
            if mixer.state_from is None
        }
        lengths_B = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return DecoderState(lengths_B, states, max_context)

    @torch.no_grad()
    def prefill(
        self,
        ids_BT: Tensor,
        state: DecoderState,
        *,
        mask_BT: Tensor | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Take in a prompt, or more of one; logits (B, V) after each row's last real token.

        Args:
            ids_BT: token ids.
            state: continued in place; rows may hold different numbers of tokens.
            mask_BT: True at real tokens; each row needs at least one.
            chunk_size: tokens per pass, which bounds activation memory; None takes all at once.

        Raises:
            ValueError: no tokens, or a row without any real one; `chunk_size` is below 1; the state
                has no room for the tokens, or is for another number of rows.
        """
        _check_real(ids_BT, mask_BT)
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"{chunk_size=} must be at least 1, or None for all tokens at once")
        size = chunk_size or ids_BT.shape[1]
        last_BD: Tensor | None = None
        for start in range(0, ids_BT.shape[1], size):
            ids, mask = ids_BT[:, start : start + size], None
            if mask_BT is not None:
                mask = mask_BT[:, start : start + size]
            hidden_BTD = self.hidden(ids, state, mask_BT=mask)
            rows_B = torch.arange(ids.shape[0], device=ids.device)
            new_BD = hidden_BTD[rows_B, _last_index(ids, mask)]
            if mask is not None and last_BD is not None:
                # A row whose prompt ended in an earlier chunk keeps that chunk's last token.
                new_BD = torch.where(mask.any(1)[:, None], new_BD, last_BD)
            last_BD = new_BD
        assert last_BD is not None
        return self.logits(last_BD)

    @torch.no_grad()
    def step(self, ids_B: Tensor, state: DecoderState) -> Tensor:
        """One token per row; logits (B, V) for the next.

        Raises:
            ValueError: the state is full, or is for another number of rows.
        """
        check_rows(ids_B, state)
        if ids_B.dim() != 1:
            raise ValueError(f"ids of shape {tuple(ids_B.shape)}: must be (rows,), a token each")
        if state.num_tokens >= state.max_context:
            raise full(state, 1)
        logits_BV = self.step_unchecked(ids_B, state)
        state.recount(state.num_tokens + 1)
        return logits_BV

    def step_unchecked(self, ids_B: Tensor, state: DecoderState) -> Tensor:
        """As `step`, without counting the token: what runtimes capture, compile or export."""
        positions_B = state.lengths_B
        stream = self.stream(ids_B)
        shared: dict[MixerKey, Features] = {}
        for index, block in enumerate(self.each_block()):
            self.mix_step(stream, index, block, state, positions_B, shared)
            block.add_channel(stream)
        state.lengths_B += 1
        return self.logits(stream.normed(self.norm))

    def prefill_unchecked(self, ids_BT: Tensor, state: DecoderState) -> Tensor:
        """As `prefill` of rows without padding, without counting the tokens; likewise."""
        steps_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        span = Span(state.lengths_B[:, None] + steps_T)
        hidden_BTD = self.through_blocks(ids_BT, state, span)
        state.lengths_B += ids_BT.shape[1]
        return self.logits(hidden_BTD[:, -1])

    # --- blocks -------------------------------------------------------------------------------

    def through_blocks(self, ids_BT: Tensor, state: DecoderState | None, span: Span) -> Tensor:
        """Hidden states after the last norm."""
        stream = self.stream(ids_BT)
        shared: dict[MixerKey, Features] = {}
        for index, block in enumerate(self.each_block()):
            self.mix(stream, index, block, state, span, shared)
            block.add_channel(stream)
        return stream.normed(self.norm)

    def mix(
        self,
        stream: Stream,
        index: int,
        block: Block,
        state: DecoderState | None,
        span: Span,
        shared: dict[MixerKey, Features],
    ) -> None:
        """The mixers' half of a block: adds their output to the stream.

        Args:
            stream: (B, T, D).
            index: of the block, which is `block`.
            block: likewise.
            state: None in training; otherwise advanced.
            span: where the tokens stand.
            shared: features of sources so far, by mixer; this block's are added.
        """
        outputs: list[Tensor] = []
        if (h_BTD := block.mixers_read(stream)) is None:
            return
        for slot, spec in enumerate(self.spec.blocks[index].mixers):
            mixer, key = self.mixer(index, slot), (index, slot)
            own = None if state is None else state.mixers.get(key)
            in_BTD, features = block.mixer_input(h_BTD, slot), None
            if spec.state_from is not None:
                features = shared[spec.state_from, slot]
            elif key in self._sources:
                features = shared[key] = _sharing(mixer).run_features(in_BTD, own, span)
            outputs.append(mixer.run(in_BTD, own, span, features))
        block.add_mixed(stream, outputs)

    def mix_step(
        self,
        stream: Stream,
        index: int,
        block: Block,
        state: DecoderState,
        positions_B: Tensor,
        shared: dict[MixerKey, Features],
    ) -> None:
        """As `mix` for one token per row: the stream is (B, D)."""
        outputs: list[Tensor] = []
        if (h_BD := block.mixers_read(stream)) is None:
            return
        for slot, spec in enumerate(self.spec.blocks[index].mixers):
            mixer, key = self.mixer(index, slot), (index, slot)
            in_BD, features = block.mixer_input(h_BD, slot), None
            if spec.state_from is not None:
                features = shared[spec.state_from, slot]
            elif key in self._sources:
                features = _sharing(mixer).run_step_features(in_BD, state.mixers[key], positions_B)
                shared[key] = features
            own = state.mixers.get(key)
            outputs.append(mixer.run_step(in_BD, own, positions_B, features))
        block.add_mixed(stream, outputs)

    def mixer(self, index: int, slot: int) -> SequenceMixer:
        """The mixer of a block's slot."""
        mixer = self._block(index).mixers[slot]
        assert isinstance(mixer, SequenceMixer)
        return mixer

    def _block(self, index: int) -> Block:
        block = self.blocks[index]
        assert isinstance(block, Block)
        return block

    def is_source(self, index: int, slot: int) -> bool:
        """Whether other blocks read this mixer's features."""
        return (index, slot) in self._sources

    def each_block(self) -> Iterator[Block]:
        """The blocks in order."""
        return (self._block(index) for index in range(len(self.blocks)))

    def _span(
        self,
        ids_BT: Tensor,
        state: DecoderState | None,
        segments_BT: Tensor | None,
        mask_BT: Tensor | None,
    ) -> tuple[Tensor | None, Span, int]:
        """Order that right-aligns padding (None: as it is), the span, tokens held afterwards."""
        batch, time = ids_BT.shape
        if state is not None and segments_BT is not None:
            raise ValueError("segments_BT marks packed training sequences; it takes no state")
        if state is not None:
            check_rows(ids_BT, state)
        if segments_BT is not None:
            segments_BT = runs(segments_BT)
            positions_BT = segment_positions(segments_BT, mask_BT)
        else:
            steps_T = torch.arange(time, device=ids_BT.device)
            positions_BT = steps_T.expand(batch, time)
            if state is not None:
                positions_BT = state.lengths_B[:, None] + steps_T
        order_BT, span, num_new = None, Span(positions_BT, segments_BT), time
        if mask_BT is not None:
            order_BT, span = align_right_padding(mask_BT, positions_BT, segments_BT)
            if segments_BT is None:
                span = replace(span, positions_BT=positions_BT)
        held = 0
        if state is not None:
            held = state.num_tokens + num_new
            if span.lengths_B is not None:
                held = int((state.lengths_B + span.lengths_B).max())
            if held > state.max_context:
                raise full(state, num_new)
        return order_BT, span, held

    if TYPE_CHECKING:

        def __call__(  # noqa: D102  (its docstring is forward's)
            self,
            ids_BT: Tensor,
            state: DecoderState | None = None,
            *,
            segments_BT: Tensor | None = None,
            mask_BT: Tensor | None = None,
            logits: Literal["all", "last"] = "all",
        ) -> Tensor: ...


def build(spec: StackSpec) -> Decoder:
    """A decoder with random weights from torch's current seed. Raises as `Decoder`."""
    return Decoder(spec)


def _lent(lender: nn.Module, borrower: nn.Module, config: Config) -> nn.Module:
    """The module of a block that has the weights of another: the other's, or one that has all but
    its own parts from there."""
    own = [name for name in config.unshared if getattr(borrower, name, None) is not None]
    if not own:
        return lender
    assert not list(lender.parameters(recurse=False)), "what is lent must stand in submodules"
    for name, part in lender.named_children():
        if name not in own:
            setattr(borrower, name, part)
    return borrower


def _sharing(mixer: SequenceMixer) -> SharingMixer:
    assert isinstance(mixer, SharingMixer), "a config's `check` lets no other be a source"
    return mixer


def _check_ids(ids_BT: Tensor) -> None:
    if ids_BT.dim() != 2 or 0 in ids_BT.shape:
        raise ValueError(
            f"ids of shape {tuple(ids_BT.shape)}: must be (rows, tokens), "
            "with at least one token in each row"
        )


def _check_real(ids_BT: Tensor, mask_BT: Tensor | None) -> None:
    """A row without a real token has no last one, and so no logits."""
    _check_ids(ids_BT)
    check_marks(ids_BT.shape, mask_BT=mask_BT)
    if mask_BT is not None and not bool((real_B := mask_BT.any(1)).all()):
        row = real_B.tolist().index(False)
        raise ValueError(
            f"mask_BT has no real token in row {row}, so it has no logits; leave the row out, or "
            "give it at least one token"
        )


def _last_index(ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Column of each row's last real token."""
    batch, time = ids_BT.shape
    if mask_BT is None:
        return torch.full((batch,), time - 1, device=ids_BT.device)
    return (mask_BT * torch.arange(time, device=ids_BT.device)).argmax(1)
