"""Tasks for other processes, here or on a cluster: what a task is, and who carries it out."""
