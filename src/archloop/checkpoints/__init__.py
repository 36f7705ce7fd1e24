"""Checkpoints in and out: any stack in our own layout, published families in theirs (`layouts`)."""

from archloop.checkpoints.loading import load
from archloop.checkpoints.saving import save

__all__ = ["load", "save"]
