"""Weights that a run begins from, made to fit the model that it trains."""

from dataclasses import replace

from mixer_common.config.model import ModelConfig, weight_shapes
from mixer_common.errors import UserError
from mixer_common.weights.canonical import ModelWeights, check_weights, describe_assumed, replace_head
from mixer_common.weights.image_size import change_image_size


def adapt_weights(given: ModelWeights, config: ModelConfig, origin: str) -> tuple[ModelWeights, list[str]]:
    """The weights `given`, made to fit `config`, and a line for people on each thing that was done or assumed.

    They are carried to another image size, and get a head of zeros where the number of classes is another; where
    carrying them changes tokens_mlp_dim and `config` has the old one, the model gets the new one. origin: names the
    weights in errors. Raises UserError where `config` differs in anything else that changes a shape.
    """
    lines = list(given.notes)
    stated = {name for name in ("gelu", "layer_norm_epsilon") if getattr(config, name) != getattr(given.config, name)}
    if assumed := describe_assumed(replace(given, assumed=tuple(set(given.assumed) - stated))):
        lines.append(f"assumed, since the file does not tell: {assumed}")
    weights = given
    if config.image_size != given.config.image_size:
        height, width = config.image_size
        if height != width:
            raise UserError(
                f"image_width {width} cannot be chosen for given weights, which are adapted to square images only: "
                "give --image-size one number."
            )
        weights, sentence = change_image_size(weights, height)
        lines.append(f"image size: {sentence}")
        if config.tokens_mlp_dim == given.config.tokens_mlp_dim:
            config = replace(config, tokens_mlp_dim=weights.config.tokens_mlp_dim)
    if not given.has_head:
        lines.append(f"head: the file holds none; zeros for {config.num_classes} classes")
        weights = replace_head(weights, config.num_classes)
    elif config.num_classes != given.config.num_classes:
        lines.append(f"head: {given.config.num_classes} classes replaced by zeros for {config.num_classes}")
        weights = replace_head(weights, config.num_classes)
    check_weights(weights.arrays, weight_shapes(config), origin)
    return replace(weights, config=config), lines
