"""Reports, from a study's store alone."""
