"""Trains an MLP-Mixer in JAX. Its twin, train_torch.py, takes the same arguments and draws the same curve."""

from mixer_common.config.model import activation_bytes
from mixer_common.errors import run_script
from mixer_common.machine import reuse_freed_memory
from mixer_common.terminal import outlast_output
from mixer_common.training.arguments import TrainArguments, parse_train


def main() -> int:
    arguments, given = parse_train(TrainArguments, __doc__)
    outlast_output()
    reuse_freed_memory(activation_bytes(arguments.config, arguments.train.images_at_once))
    print("Starting JAX and reading the data ...", flush=True)
    from mixer_common.training.start import train
    from mixer_jax.framework import JaxFramework

    return train(JaxFramework(), arguments, given)


if __name__ == "__main__":
    run_script(main)
