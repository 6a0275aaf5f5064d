"""Floating-point operations of a step, counted from the list of layers."""

from mixer_common.config.model import ModelConfig, layers


def flops_per_step(config: ModelConfig, batch_size: int, mode: str) -> int:
    """Floating-point operations of the matrix products in one step of a batch; mode: "forward" or "train".

    Training has two more products for every one of the forward pass: the gradients of its two factors. The stem has
    one more only, since nothing needs the gradient of the pixels.
    """
    forward = {layer.name: layer.matmul_flops for layer in layers(config)}
    total = sum(forward.values())
    return batch_size * (total if mode == "forward" else 3 * total - forward["stem"])
