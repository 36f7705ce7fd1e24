"""Checkpoints in and out: LFM2 and LFM2-MoE in Hugging Face layout, any stack in our own."""

from archloop.checkpoints.loading import load
from archloop.checkpoints.saving import save

__all__ = ["load", "save"]
