"""The configuration of a model and of its training, the presets by name, and the list of a model's layers."""
