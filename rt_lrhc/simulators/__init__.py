"""Batched plants: reset, step, push; one engine or plant a file; torch tensors in and out."""
