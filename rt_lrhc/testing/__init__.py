"""Test doubles for users of the package."""
