"""Measuring on devices: protocol, statistics."""
