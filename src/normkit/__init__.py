"""Normalization for deep networks, complete. This page is the contents: public names only."""

__version__ = "0.1.0"
