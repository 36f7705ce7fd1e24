"""Building a corpus from software packages or a hub data set: fetch, extract, clean, filter, pack."""
