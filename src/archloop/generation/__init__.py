"""From prompt to text: the loop over a model's prefill and decode steps."""

from archloop.generation.model import Model, load_model, stream

__all__ = ["Model", "load_model", "stream"]
