"""Layouts of checkpoints, one file per family: its configuration and its table of tensors."""
