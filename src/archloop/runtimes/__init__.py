"""Inference engines, one file each: export, open, prefill, decode."""
