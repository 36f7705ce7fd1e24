"""An engine whose step finds the most likely tokens is not asked to search for them again."""

import pytest
import torch

from archloop.generation.generation import Generation, generate
from archloop.generation.sampling import Sampling
from archloop.generation.transcript import Transcript
from archloop.stack.decoder import Decoder
from archloop.stack.state import DecoderState
from small_stack import SPEC


class Looked:
    """A decoder whose steps find the likeliest tokens, as an engine's do."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.vocab_size, self.precision = decoder, decoder.vocab_size, "float32"
        self.asked = self.gave = 0
        self._last: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def init_state(self, batch_size: int, max_context: int) -> DecoderState:
        return self.decoder.init_state(batch_size, max_context)

    def prefill(
        self,
        ids_BT: torch.Tensor,
        state: DecoderState,
        *,
        mask_BT: torch.Tensor | None = None,
        chunk_size: int | None = None,
    ) -> torch.Tensor:
        return self.decoder.prefill(ids_BT, state, mask_BT=mask_BT, chunk_size=chunk_size)

    def step(self, ids_B: torch.Tensor, state: DecoderState) -> torch.Tensor:
        logits_BV = self.decoder.step(ids_B, state)
        best_B, found_B = logits_BV.max(-1)
        self._last = logits_BV, found_B, torch.stack([found_B.double(), best_B.double()])
        return logits_BV

    def likeliest(self, logits_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        self.asked += 1
        if self._last is None or self._last[0] is not logits_BV:
            return None
        self.gave += 1
        return self._last[1:]


@pytest.mark.parametrize("ahead", [False, True])
def test_an_engine_that_has_looked_is_believed(ahead: bool) -> None:
    """In steps; a prompt's logits are looked at here, and so are those of a drawn token."""
    torch.manual_seed(0)
    decoder = Decoder(SPEC).double().eval()
    engine = Looked(decoder)
    replies = []
    for model in (decoder, engine):
        transcript = Transcript(model, 32, 2)
        transcript.extend([[1, 2, 3], [4]])
        replies.append(list(Generation(transcript, 6, ahead=ahead)))
    assert replies[0] == replies[1]
    assert (engine.asked, engine.gave) == (6, 5)
    generate(engine, [[1]], 3, Sampling(temperature=1.0))
    assert engine.asked == 6
