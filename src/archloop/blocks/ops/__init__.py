"""Algorithms that mixers share, each a plain reference beside its fast form."""
