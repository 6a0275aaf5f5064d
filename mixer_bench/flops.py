"""TODO docstring."""

from mixer_common.config.model import ModelConfig


def forward_flops(config: ModelConfig) -> dict[str, int]:
    """Floating-point operations of one image's matmuls, by where they are, all blocks together.

    A product of (m, k) and (k, n) has 2·m·n·k. An MLP over S tokens does C times what one over C channels does S
    times, so both kinds of block have the same.
    """
    tokens = config.num_patches * config.hidden_dim
    return {
        "stem": 2 * tokens * 3 * config.patch_size**2,
        "token_mixing": config.num_blocks * 4 * tokens * config.tokens_mlp_dim,
        "channel_mixing": config.num_blocks * 4 * tokens * config.channels_mlp_dim,
        "head": 2 * config.hidden_dim * config.num_classes,
    }


def flops_per_step(config: ModelConfig, batch_size: int, mode: str) -> int:
    """Of a batch. Training has two more products for every one of the forward pass: the gradients of its two
    factors; the stem has one more, since nobody needs the pixels' gradient."""
    forward = forward_flops(config)
    total = sum(forward.values())
    return batch_size * (total if mode == "forward" else 3 * total - forward["stem"])
