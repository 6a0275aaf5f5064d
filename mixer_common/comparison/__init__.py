"""The comparison of two models, layer by layer."""
