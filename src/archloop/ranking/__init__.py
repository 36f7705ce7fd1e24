"""Pure functions of plain figures: objectives, non-domination, hypervolume, the front."""
