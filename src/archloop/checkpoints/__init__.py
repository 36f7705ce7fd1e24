"""Hugging Face checkpoint layouts, in and out."""
