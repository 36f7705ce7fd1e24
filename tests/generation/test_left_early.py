"""A reply that is left before its end, wherever its reader stands by then."""

import torch

from archloop.generation.generation import Generation
from archloop.generation.transcript import Transcript
from archloop.stack.decoder import Decoder
from small_stack import SPEC


def test_a_reply_begun_in_inference_mode_is_left_outside_it() -> None:
    """The step that was begun ahead is undone there, in a state that was made inside."""
    decoder = Decoder(SPEC).eval()
    with torch.inference_mode():
        transcript = Transcript(decoder, 32, 1)
        transcript.extend([[1, 2, 3]])
        generation = Generation(transcript, 8, ahead=True)
        for _ in range(3):
            next(generation)
        ahead = transcript.state.lengths_B.clone()
    generation.close()
    assert transcript.state.lengths_B.tolist() == [5]
    assert ahead.tolist() == [6]
