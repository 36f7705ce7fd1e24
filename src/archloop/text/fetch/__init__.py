"""Building a corpus from packages or a hub data set: fetch, extract, clean, filter, pack."""
