"""Weights in the canonical form, and the way to other formats and back."""
