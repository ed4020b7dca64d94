"""Generated tasks: the same arrays for the same arguments, for questions that no data set at hand answers."""
