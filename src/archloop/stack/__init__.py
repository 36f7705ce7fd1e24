"""Stacks of blocks: specs, decoders, costs, presets."""
