"""The MLP-Mixer and its training in JAX: Flax NNX and optax."""
