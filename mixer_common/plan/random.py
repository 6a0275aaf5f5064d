"""The generators of a run's random numbers, in NumPy, so that both frameworks use the same numbers."""

import numpy as np

# The numbers are part of every run that was made: a new purpose takes the next one.
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
    """A generator that depends on these three alone, so that any epoch's numbers can be drawn without the others'.

    purpose: a key of _PURPOSES. It is counter-based: Philox (Salmon et al. 2011,
    doi 10.1145/2063384.2063405).
    """
    key = np.random.SeedSequence((seed, epoch, _PURPOSES[purpose])).generate_state(2, np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
