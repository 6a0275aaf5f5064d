"""Trains an MLP-Mixer in PyTorch. Its twin, train_jax.py, takes the same arguments and draws the same curve."""

from mixer_common.cli import TorchTrainArguments, parse_train
from mixer_common.errors import run_script
from mixer_common.memory import keep_memory


def main() -> int:
    arguments = parse_train(TorchTrainArguments, __doc__)
    keep_memory(arguments.config, arguments.train)
    print("Starting PyTorch and reading the data ...", flush=True)
    from mixer_common.loop import train
    from mixer_torch.framework import framework

    return train(framework(arguments.compile), arguments)


if __name__ == "__main__":
    run_script(main)
