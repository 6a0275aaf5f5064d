"""Trains an MLP-Mixer in JAX. Its twin, train_torch.py, takes the same arguments and draws the same curve."""

from mixer_common.cli import TrainArguments, parse_train
from mixer_common.errors import run_script
from mixer_common.memory import keep_memory


def main() -> int:
    arguments = parse_train(TrainArguments, __doc__)
    keep_memory(arguments.config, arguments.train)
    print("Starting JAX and reading the data ...", flush=True)
    from mixer_common.loop import train
    from mixer_jax.framework import framework

    return train(framework(), arguments)


if __name__ == "__main__":
    run_script(main)
