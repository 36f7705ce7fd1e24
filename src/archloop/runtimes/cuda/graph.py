"""One decode step as a CUDA graph: recorded once, replayed for every token without Python.

Shape suffixes: B batch, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from archloop.runtimes.cuda.choice import Choice
from archloop.stack.state import DecoderState, check_rows, full

WARM_STEPS = 2
"""Decode steps run before one is captured."""


class StepGraph:
    """One decode step over one state.

    Attributes:
        state: the state that every step advances.
        ids_B: ids that the next step takes in; after a step, the most likely next ones.
        logits_BV: of the last step.
    """

    def __init__(
        self,
        state: DecoderState,
        run: Callable[[Choice], Tensor],
        touched: Sequence[Tensor],
        kept: Sequence[Tensor],
    ) -> None:
        """Record a step; the state is left as it was.

        Args:
            state: see above.
            run: takes in the chosen ids, chooses the most likely next ones, gives logits (B, V).
            touched: tensors that a step from an empty state overwrites.
            kept: what a step reads besides parameters and state; the graph does so at the
                addresses of today, so these must live as long.
        """
        self.state, self._kept = state, list(kept)
        self._choice, self._turn = Choice.of_rows(state.lengths_B), 0
        self.ids_B = self._choice.ids_B
        touched = [state.lengths_B, self._choice.turns_B, *touched]
        before = [t.clone() for t in touched]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with state.frozen(), torch.cuda.stream(stream), torch.no_grad():
            # Kernels compile, and libraries make their handles, before anything is recorded.
            for _ in range(WARM_STEPS):
                # Every warm-up step writes the cache's first slot: a state may have room for one
                # token only.
                state.lengths_B.zero_()
                run(self._choice)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with state.frozen(), torch.cuda.graph(self._graph), torch.no_grad():
            self.logits_BV = run(self._choice)
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
        self._turn = 1 - self._turn
        self.state.recount(self.state.num_tokens + 1)
        return self.logits_BV

    @property
    def told_2B(self) -> Tensor:
        """The ids that the last step has chosen and their logits (`Choice`), (2, B).

        They stay until the second step after it.
        """
        return self._choice.told_22B[1 - self._turn]
