"""Every random number of a training run, drawn in NumPy so that both frameworks use the same ones."""

import numpy as np

_PURPOSES = {
    "init": 0,
    "order": 1,
    "stochastic_depth": 2,
    "noise": 3,
    "crop": 4,
    "flip": 5,
    "trivial_augment": 6,
    "cutout": 7,
    "mixing": 8,
}


def generator(seed: int, epoch: int, purpose: str) -> np.random.Generator:
    """A generator that depends on these three alone: any epoch's numbers can be drawn without the others'."""
    key = np.random.SeedSequence((seed, epoch, _PURPOSES[purpose])).generate_state(2, np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
