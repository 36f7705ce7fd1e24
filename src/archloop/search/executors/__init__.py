"""Executors: who does a study's jobs, and how many at once."""
