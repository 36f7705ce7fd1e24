"""The CUDA engine as a model to generate with: what is measured is also what users run.

Prompts of equal length go through fused kernels, decode through a captured step; ragged prompts and
drafts through the decoder itself, over the same state.

Shape suffixes: B batch, T time, V vocabulary.
"""

from torch import Tensor

from archloop.runtimes.cuda.fused import FusedDecoder
from archloop.runtimes.cuda.graph import StepGraph
from archloop.stack.decoder import Decoder
from archloop.stack.state import DecoderState


class CudaModel:
    """A decoder on a GPU, as `archloop.generation.protocol.Scorer` has it.

    Args:
        decoder: on the GPU; its parameters are used in place.
        kernels: see `FusedDecoder`.
    """

    def __init__(self, decoder: Decoder, *, kernels: bool = True) -> None:
        self.decoder = decoder
        self.fused = FusedDecoder(decoder, kernels=kernels)
        self.vocab_size, self.precision = decoder.vocab_size, decoder.precision
        self._graph: StepGraph | None = None

    def init_state(self, batch_size: int, max_context: int) -> DecoderState:
        """An empty state."""
        return self.fused.init_state(batch_size, max_context)

    def prefill(
        self,
        ids_BT: Tensor,
        state: DecoderState,
        *,
        mask_BT: Tensor | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Take in prompts, as `Decoder.prefill`."""
        ragged = state.num_tokens and not bool((state.lengths_B == state.num_tokens).all())
        if mask_BT is not None or ragged or 0 in ids_BT.shape:
            return self.decoder.prefill(ids_BT, state, mask_BT=mask_BT, chunk_size=chunk_size)
        chunks = ids_BT.split(chunk_size or ids_BT.shape[1], 1)
        return [self.fused.prefill(ids, state) for ids in chunks][-1]

    def step(self, ids_B: Tensor, state: DecoderState) -> Tensor:
        """One token per row; logits (B, V) for the next, overwritten by the next step."""
        if not state.lengths_B.is_cuda:
            return self.fused.step(ids_B, state)
        if self._graph is None or self._graph.state is not state:
            self._graph = None  # Its memory is free before another takes some.
            self._graph = self.fused.capture(state)
        return self._graph.step(ids_B)

    def likeliest(self, logits_BV: Tensor) -> tuple[Tensor, Tensor] | None:
        """As `archloop.generation.protocol.Chooser`: a captured step has looked already."""
        graph = self._graph
        if graph is None or logits_BV is not graph.logits_BV:
            return None
        return graph.ids_B, graph.told_2B

    def __call__(
        self, ids_BT: Tensor, state: DecoderState, *, mask_BT: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V) of a chunk, which advances the state."""
        return self.decoder(ids_BT, state, mask_BT=mask_BT)
