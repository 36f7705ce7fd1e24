"""Scoring a trained proxy: held-out text and each task's test examples, the same for every trial.

Scores at several times the trained length stand under the name with the factor behind it, such as
``bits_per_byte@4x``.
"""

from archloop.evals import bits_per_byte
from archloop.evals.base import Score
from archloop.evals.decoder_model import DecoderModel
from archloop.evals.verbs import Shifted
from archloop.proxy.config import ProxyConfig
from archloop.proxy.mixture import ProxyData
from archloop.space.checking import WINDOWS_PER_SEQUENCE
from archloop.stack.decoder import Decoder


def evaluate(decoder: Decoder, data: ProxyData, config: ProxyConfig) -> dict[str, Score]:
    """Scores by name, of text and tasks, at every length that the recipe names."""
    scores: dict[str, Score] = {}
    for factor in config.lengths:
        found = _text(decoder, data, config, factor)
        model = DecoderModel(decoder, batch_size=128)
        for name, (task, first_id) in data.tasks.items():
            seen = Shifted(model, first_id, task.vocab_size)
            longer = task if factor == 1 else task.at_length(factor)
            found[name] = longer.run(seen, limit=config.tasks[name].num_eval)
        scores.update({at(name, factor): score for name, score in found.items()})
    return scores


def at(name: str, factor: int) -> str:
    """Name of a score at a multiple of the trained length."""
    return name if factor == 1 else f"{name}@{factor}x"


def too_short(config: ProxyConfig, lengths: dict[str, int], window: int) -> dict[str, str]:
    """Scores in whose rows the farthest-seeing window is hardly left, and why each is left out.

    Args:
        config: the recipe's.
        lengths: of each task's rows in training.
        window: tokens that the mixer sees which sees farthest without seeing everything.
    """
    need = WINDOWS_PER_SEQUENCE * window
    return {
        at(name, factor): (
            f"its rows of {length * factor} tokens are shorter than {WINDOWS_PER_SEQUENCE} x the "
            f"{window} tokens that a window of the space sees"
        )
        for name, length in lengths.items()
        for factor in config.lengths
        if length * factor < need
    }


def _text(decoder: Decoder, data: ProxyData, config: ProxyConfig, factor: int) -> dict[str, Score]:
    """Bits per byte of held-out windows, as many tokens of them at every length."""
    windows_NT = bits_per_byte.windows(
        data.heldout_T,
        max(2, config.num_text_windows // factor),
        config.training.seq_len * factor,
    )
    model = DecoderModel(decoder, batch_size=32)
    if config.text_parts:
        return bits_per_byte.measure_parts(model, windows_NT, data.num_bytes_V)
    return {bits_per_byte.ALL: bits_per_byte.measure(model, windows_NT, data.num_bytes_V)}
