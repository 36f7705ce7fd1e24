"""What a study keeps: its folder, its database and the plain records that reports read."""
