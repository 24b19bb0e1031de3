"""A Gymnasium environment whose world does not wait."""

__version__ = "0.1.0"
