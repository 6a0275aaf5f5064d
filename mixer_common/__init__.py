"""What the two frameworks must agree on, written once, in NumPy."""
