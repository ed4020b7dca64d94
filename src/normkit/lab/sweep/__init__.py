"""Many trials at once: what is missing of a plan, measured by workers, kept by the one process that owns the store."""
