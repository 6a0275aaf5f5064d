"""Everything that a training step takes from outside, drawn ahead in NumPy."""
