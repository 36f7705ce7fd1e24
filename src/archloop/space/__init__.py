"""What a search may try: a space as data, its genomes, and how they are drawn and varied."""
