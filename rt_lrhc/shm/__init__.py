"""Shared memory between processes: segments, layouts, views, doorbells, names. Knows nothing of robots."""
