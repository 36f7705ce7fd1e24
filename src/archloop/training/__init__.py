"""Training of decoders: optimiser, schedule, loop."""
