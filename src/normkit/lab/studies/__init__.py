"""The studies: one claim of the literature a file, and what measures it."""
