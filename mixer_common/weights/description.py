"""Descriptions of weights for people: the model, and what a file's reader has to know that the file does not hold."""

from mixer_common.config.model import ModelConfig
from mixer_common.config.presets import model_name
from mixer_common.weights.formats import FORMATS


def describe_model(config: ModelConfig) -> str:
    """The name and the sizes of a model."""
    height, width = config.image_size
    return (
        f"{model_name(config)}: images {height}x{width}, patches {config.patch_size}x{config.patch_size}, "
        f"{config.num_blocks} {config.block} blocks, hidden_dim {config.hidden_dim}, "
        f"tokens_mlp_dim {config.tokens_mlp_dim}, channels_mlp_dim {config.channels_mlp_dim}, "
        f"{config.num_classes:,} classes"
    )


def describe_formats() -> str:
    """Every format with the program whose format it is, and the endings of the files that it is written to."""
    return ", ".join(
        f"{name} ({format.description}: {', '.join(format.suffixes) or 'a folder'})" for name, format in FORMATS.items()
    )


def notes_for_reader(config: ModelConfig, format: str) -> list[str]:
    """One sentence for each thing that the reader of a file has to know, as the file does not hold it."""
    if format == "canonical":
        return []
    notes = [f"Load it into {constructor_call(config, format)}"] if format in ("timm", "lucidrains") else []
    differing = [
        f"{name} {getattr(config, name)} instead of {usual}"
        for name, usual in FORMATS[format].details.items()
        if name != "init" and usual != getattr(config, name)
    ]
    if differing:
        notes.append(f"The reader must set {' and '.join(differing)}: {format} files do not hold it.")
    if format == "tutorial" and config.num_patches != config.hidden_dim:
        notes.append(
            f"The tutorial's own class does not load it: its layer_norm1 has the size hidden_dim, {config.hidden_dim}, "
            f"and here that of the patches, {config.num_patches}."
        )
    if config.stochastic_depth:
        notes.append(f"stochastic_depth {config.stochastic_depth:g} acts in training only; the file does not hold it.")
    return notes


def constructor_call(config: ModelConfig, format: str) -> str:
    """The Python expression that makes the model of timm or of mlp_mixer_pytorch into which the file can be loaded."""
    height, width = config.image_size
    size = height if height == width else (height, width)
    # Both packages compute int(ratio · hidden_dim), which must not fall below the size.
    tokens, channels = (
        hidden / config.hidden_dim
        if int(hidden / config.hidden_dim * config.hidden_dim) == hidden
        else (hidden + 0.5) / config.hidden_dim
        for hidden in (config.tokens_mlp_dim, config.channels_mlp_dim)
    )
    if format == "lucidrains":  # its expansion_factor is the tokens', its expansion_factor_token the channels'
        return (
            f"mlp_mixer_pytorch.MLPMixer(image_size={size}, channels=3, "
            f"patch_size={config.patch_size}, dim={config.hidden_dim}, depth={config.num_blocks}, "
            f"num_classes={config.num_classes}, expansion_factor={tokens}, expansion_factor_token={channels})"
        )
    if model_name(config) in ("s32", "s16", "b32", "b16", "l32", "l16"):
        return f'timm.create_model("mixer_{model_name(config)}_224", num_classes={config.num_classes})'
    return (
        f"timm.models.mlp_mixer.MlpMixer(img_size={size}, patch_size={config.patch_size}, "
        f"num_blocks={config.num_blocks}, embed_dim={config.hidden_dim}, mlp_ratio=({tokens}, {channels}), "
        f"num_classes={config.num_classes})"
    )
