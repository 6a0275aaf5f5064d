"""PyTorch as the scripts see it. Twin of mixer_jax/framework.py."""

from functools import partial
from importlib.metadata import version

import torch

from mixer_common.errors import UserError
from mixer_common.loop import Framework, common_versions
from mixer_torch.data import download_cifar10
from mixer_torch.evaluate import activations_of_weights, logits_of_weights, out_of_memory
from mixer_torch.train import Trainer, gradients_of_weights


def framework(compiled: bool = False) -> Framework:
    return Framework(
        name="torch", versions=common_versions() | {name: version(name) for name in ("torch", "torchvision")},
        prepare=prepare, describe=describe, trainer=partial(Trainer, compiled=compiled),
        logits=logits_of_weights,
        activations=activations_of_weights, gradients=gradients_of_weights, download=download_cifar10,
        out_of_memory=out_of_memory)


def prepare(asked: str, precision: str) -> torch.device:
    """The device `asked` for ("auto", "cpu", "gpu"), with PyTorch set up for the precision."""
    # Otherwise a GPU rounds the factors of float32 matmuls and convolutions to TF32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    available = torch.cuda.is_available()
    if asked == "gpu" and not available:
        raise UserError("--device gpu was asked for, but PyTorch finds no GPU: run on a machine with an NVIDIA "
                        "GPU and its driver, or use --device cpu.")
    return torch.device("cuda" if available and asked != "cpu" else "cpu")


def describe(device: torch.device) -> str:
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    return f"GPU {torch.cuda.get_device_name(device)}"
