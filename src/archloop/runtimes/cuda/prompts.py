"""Prompts as CUDA graphs: a length is recorded when it first comes and replayed ever after.

Python starts the 200 to 2,000 kernels of a prompt more slowly than a fast card runs them, so that
prompts of up to some ten thousand tokens take as long as Python does. A graph starts them all at
once. It holds one length, so a prompt is padded on the right, by an eighth at most, to one of the
eight lengths in each doubling; what is recorded is then told how many of its tokens are real. All
that depends on the length alone stays as the mixers compute it, which is why a graph takes prompts
into an empty state: how many tokens a state holds decides what attention reads. A later part of a
conversation runs as it is written.

Shape suffixes: B batch, T time, V vocabulary.
"""

import warnings

import torch
from torch import Tensor

from archloop.runtimes.cuda.fused import TOKENS_PER_PASS, FusedDecoder
from archloop.stack.state import DecoderState

LEAST_STEP = 8
"""Tokens between the lengths that prompts of up to 128 tokens are padded to."""


def padded(time: int, most: int) -> int:
    """The length that a prompt of `time` tokens is padded to, where `most` tokens have room."""
    step = max(LEAST_STEP, (1 << (time - 1).bit_length()) >> 4)
    return max(time, min(-(-time // step) * step, most))


class PromptGraphs:
    """Prefill from an empty state, through a graph for each length.

    All graphs work in the same memory, as large as the largest needs.

    Args:
        engine: runs the prompts.
        state: that every prompt goes into, emptied in between.
    """

    def __init__(self, engine: FusedDecoder, state: DecoderState) -> None:
        self.engine, self.state = engine, state
        self._prompts: dict[tuple[int, bool], _Prompt] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._captures = engine.captures_prompts

    def prefill(self, ids_BT: Tensor) -> Tensor:
        """As `FusedDecoder.prefill`: logits (B, V) after the last token.

        Raises:
            ValueError: as there.
        """
        state, (batch, time) = self.state, ids_BT.shape
        size = padded(time, state.max_context)
        if not self._captures or state.num_tokens or batch * size > TOKENS_PER_PASS:
            return self.engine.prefill(ids_BT, state)
        self.engine.check_prompt(ids_BT, state)
        key = size, size > time
        if key not in self._prompts:
            self._prompts[key] = _Prompt(ids_BT, size)
        prompt = self._prompts[key]
        prompt.take(ids_BT)
        if prompt.graph is None:
            # Run once as it is written, kernels compile and libraries plan for this length.
            logits_BV = self.engine.run_prompt(prompt.ids_BT, state, prompt.real_B)
            self._record(prompt)
        else:
            prompt.graph.replay()
            # The next prompt overwrites what the graph wrote.
            logits_BV = prompt.logits_BV.clone()
        state.lengths_B += time
        state.recount(time)
        return logits_BV

    def _record(self, prompt: "_Prompt") -> None:
        """Record what has just run; nothing runs, so the state stays as it is."""
        # Else the memory that the run has freed would be held beside the graphs'.
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool), torch.no_grad():
                prompt.logits_BV = self.engine.run_prompt(prompt.ids_BT, self.state, prompt.real_B)
        except RuntimeError as error:
            # A mixer that waits for the card in the middle is slower, not refused.
            reason = str(error).partition("\n")[0]
            warnings.warn(f"prompts run without a graph: {reason}", stacklevel=3)
            self._captures = False
            self._prompts.clear()
            return
        prompt.graph, prompt.kept = graph, self.engine.tables()


class _Prompt:
    """What the graph of one length reads and writes.

    Attributes:
        ids_BT: ids of the prompt, padded.
        real_B: tokens of each row that are not padding; None where all are.
        graph: once recorded.
        logits_BV: that it writes.
        kept: what it reads besides parameters and state, at the addresses of when it was recorded.
    """

    def __init__(self, like_BT: Tensor, size: int) -> None:
        batch, time = like_BT.shape
        self.ids_BT = like_BT.new_zeros(batch, size)
        self.real_B = None if size == time else like_BT.new_zeros(batch)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.kept: list[Tensor] = []
        self.logits_BV: Tensor

    def take(self, ids_BT: Tensor) -> None:
        """Put a prompt where the graph reads it."""
        time = ids_BT.shape[1]
        self.ids_BT[:, :time].copy_(ids_BT)
        if self.real_B is not None:
            self.real_B.fill_(time)
