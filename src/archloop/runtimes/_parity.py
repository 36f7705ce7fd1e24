"""Logits of a short prompt and some decode steps, from eager PyTorch and from a session.

Shape suffixes: B batch, T time, R rows of logits (the prompt's last, then one per step),
V vocabulary.
"""

import copy

import numpy as np
import torch

from archloop.runtimes.base import Logits, Session
from archloop.stack.decoder import Decoder


def eager_logits(decoder: Decoder, prompt: list[int], more: list[int], dtype: str) -> Logits:
    """Logits (R, V) of the decoder itself, computed in `dtype`; the decoder is left as it was."""
    wanted = getattr(torch, dtype)
    if decoder.embedding.weight.dtype != wanted:
        decoder = copy.deepcopy(decoder).to(wanted)
    was_training = decoder.training
    decoder.eval()
    state = decoder.init_state(1, len(prompt) + len(more))
    rows = [decoder.prefill(torch.tensor([prompt]), state)]
    rows += [decoder.step(torch.tensor([token]), state) for token in more]
    decoder.train(was_training)
    logits_RV: Logits = torch.cat(rows).float().numpy()
    return logits_RV


def session_logits(session: Session, prompt: list[int], more: list[int]) -> Logits:
    """Logits (R, V) of a session, the prompt given in two parts so that state must carry over."""
    middle = len(prompt) - 3
    session.prefill(prompt[:middle])
    rows = [session.prefill(prompt[middle:]), *(session.decode_step(token) for token in more)]
    return np.stack(rows)
