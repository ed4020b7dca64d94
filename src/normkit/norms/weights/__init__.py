"""Norms of weights instead of activations, as parametrizations of torch: one file per norm."""
