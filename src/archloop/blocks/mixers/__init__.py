"""Sequence mixers, one file each; the file's name is the mixer's name."""
