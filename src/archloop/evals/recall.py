"""Rows of key-value pairs, with or without noise between them: what the recall tasks share.

Shape suffixes: N examples, T time, P pairs, K keys.
"""

import numpy as np
from numpy.typing import NDArray

from archloop.evals.base import IGNORE, Examples
from archloop.evals.generation import repeats, shift


def recall_rows(
    rng: np.random.Generator,
    num_examples: int,
    *,
    num_tokens: int,
    num_pairs: int,
    predict_all: bool,
    num_noise_tokens: int = 0,
    noise_share: float = 0.0,
) -> Examples:
    """Rows of ``2 * num_pairs - 1`` tokens: pairs ``key value``, the last key already shown.

    Args:
        rng: random numbers.
        num_examples: rows.
        num_tokens: keys (the first half) and values; noise has the ids after these.
        num_pairs: pairs, noise pairs and the final one included.
        predict_all: targets are all next tokens; otherwise the values of returning keys.
        num_noise_tokens: noise vocabulary.
        noise_share: probability that a pair is two noise tokens.
    """
    num_keys = num_tokens // 2
    keys_NP = rng.integers(num_keys, size=(num_examples, num_pairs))
    map_NK = rng.integers(num_keys, num_tokens, size=(num_examples, num_keys))
    noise_NP = rng.random((num_examples, num_pairs)) < noise_share
    # At least one pair before the last stays free of noise, so that the last key can repeat a key
    # that was shown.
    spared_N = rng.integers(num_pairs - 1, size=num_examples)
    noise_NP[np.arange(num_examples), spared_N] = False
    noise_NP[:, -1] = False
    keys_NP[:, -1] = _shown_key(rng, keys_NP[:, :-1], noise_NP[:, :-1])
    values_NP = np.take_along_axis(map_NK, keys_NP, 1)
    # A noisy place shows no key. It gets a number of its own here, so that a later key does not
    # count as its repetition.
    shown_NP = np.where(noise_NP, num_tokens + np.arange(num_pairs), keys_NP)
    asked_NP = repeats(shown_NP)
    pairs_NP2 = np.stack([keys_NP, values_NP], 2)
    if num_noise_tokens:
        drawn_NP2 = rng.integers(num_tokens, num_tokens + num_noise_tokens, size=pairs_NP2.shape)
        pairs_NP2 = np.where(noise_NP[..., None], drawn_NP2, pairs_NP2)
    ids_NT = pairs_NP2.reshape(num_examples, -1)
    answers_NT = ids_NT
    if not predict_all:
        answers_NP2 = np.full_like(pairs_NP2, IGNORE)
        answers_NP2[..., 1] = np.where(asked_NP, values_NP, IGNORE)
        answers_NT = answers_NP2.reshape(num_examples, -1)
    return shift(ids_NT, answers_NT)


def _shown_key(
    rng: np.random.Generator, keys_NP: NDArray[np.int64], noise_NP: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """One of the different keys that each row shows, each as likely, (N,)."""
    places_P = np.arange(keys_NP.shape[1])
    distinct_NP = ~noise_NP & ~repeats(np.where(noise_NP, -1 - places_P, keys_NP))
    lots_NP = np.where(distinct_NP, rng.random(keys_NP.shape), -1.0)
    chosen: NDArray[np.int64] = keys_NP[np.arange(len(keys_NP)), lots_NP.argmax(1)]
    return chosen
