"""Architecture search: the study, its objectives, and strategies."""
