"""One decode step as a CUDA graph: recorded once, replayed for every token without Python.

Shape suffixes: B batch, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from archloop.stack.state import DecoderState, check_rows, full

WARM_STEPS = 2
"""Decode steps run before one is captured."""


class StepGraph:
    """One decode step over one state.

    Attributes:
        state: the state that every step advances.
        ids_B: ids that the next step takes in; after a step, the most likely next ones.
        logits_BV: of the last step.
        best_B: the largest of them in each row, NaN where there is any.
    """

    def __init__(
        self,
        state: DecoderState,
        run: Callable[[Tensor], tuple[Tensor, Tensor]],
        touched: Sequence[Tensor],
        kept: Sequence[Tensor],
    ) -> None:
        """Record a step; the state is left as it was.

        Args:
            state: see above.
            run: takes in ids (B,), writes the most likely next ones into them, gives logits (B, V)
                and the largest of each row (B,).
            touched: tensors that a step from an empty state overwrites.
            kept: what a step reads besides parameters and state; the graph does so at the
                addresses of today, so these must live as long.
        """
        self.state, self._kept = state, list(kept)
        self.ids_B = torch.zeros_like(state.lengths_B)
        touched = [state.lengths_B, *touched]
        before = [t.clone() for t in touched]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with state.frozen(), torch.cuda.stream(stream), torch.no_grad():
            # Kernels compile, and libraries make their handles, before anything is recorded.
            for _ in range(WARM_STEPS):
                # Every warm-up step writes the cache's first slot: a state may have room for one
                # token only.
                state.lengths_B.zero_()
                run(self.ids_B)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with state.frozen(), torch.cuda.graph(self._graph), torch.no_grad():
            self.logits_BV, self.best_B = run(self.ids_B)
        for tensor, old in zip(touched, before, strict=True):
            tensor.copy_(old)

    def step(self, ids_B: Tensor | None = None) -> Tensor:
        """Take in one token per row; logits (B, V), overwritten by the next step.

        Args:
            ids_B: the tokens; None takes the most likely ones of the step before.

        Raises:
            ValueError: the state is full, or is for another number of rows.
        """
        if self.state.num_tokens >= self.state.max_context:
            raise full(self.state, 1)
        if ids_B is not None:
            check_rows(ids_B, self.state)
            if ids_B is not self.ids_B:
                self.ids_B.copy_(ids_B)
        self._graph.replay()
        self.state.recount(self.state.num_tokens + 1)
        return self.logits_BV
