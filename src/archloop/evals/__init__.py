"""Evaluations: the runner, and one file per task in tasks/."""
