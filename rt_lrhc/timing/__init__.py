"""Clocks, measured durations, and what the operating system grants."""
