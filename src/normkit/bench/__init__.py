"""Measurements of the layers, by their public names: `speed` beside peers and the memory bus, `accuracy`."""
