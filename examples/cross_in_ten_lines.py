"""Creates a model in PyTorch, carries it into JAX, and compares what both predict on scikit-learn's digits."""

import numpy as np

import mixer_jax
import mixer_torch
from mixer_common.data import load_dataset

images = load_dataset("digits", None, None).test_images  # uint8 (360, 32, 32, 3)
model = mixer_torch.create("tiny", num_classes=10, seed=0)
twin = mixer_jax.create(model.config, weights=mixer_torch.weights(model))
difference = np.abs(mixer_torch.predict(model, images) - mixer_jax.predict(twin, images)).max()
print(f"{len(images)} digits: two probabilities differ by at most {difference:.1e}")
