"""What normalization does wrong in a model: found, shown and repaired."""
