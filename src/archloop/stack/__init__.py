"""Stacks of blocks: specs, spaces, decoders, costs, presets."""
