"""TODO docstring."""

from dataclasses import replace

from mixer_common.config.model import ModelConfig
from mixer_common.config.train import TrainConfig

_TUTORIAL = ModelConfig(block="tutorial")


def _paper(patch_size: int, num_blocks: int, hidden_dim: int) -> ModelConfig:
    return ModelConfig(
        image_size=224,
        patch_size=patch_size,
        num_classes=1000,
        num_blocks=num_blocks,
        hidden_dim=hidden_dim,
        tokens_mlp_dim=hidden_dim // 2,
        channels_mlp_dim=4 * hidden_dim,
        gelu="tanh",
        layer_norm_epsilon=1e-6,
        init="flax",
    )


MODELS: dict[str, ModelConfig] = {
    "tutorial": _TUTORIAL,
    "tiny": replace(_TUTORIAL, block="mixer"),
    "nano": ModelConfig(
        hidden_dim=128,
        num_blocks=8,
        tokens_mlp_dim=96,
        channels_mlp_dim=256,
        gelu="tanh",
        layer_norm_epsilon=1e-6,
        init="flax",
    ),
    "s32": _paper(32, 8, 512),
    "s16": _paper(16, 8, 512),
    "b32": _paper(32, 12, 768),
    "b16": _paper(16, 12, 768),
    "l32": _paper(32, 24, 1024),
    "l16": _paper(16, 24, 1024),
    "h14": _paper(14, 32, 1280),
    "strong": ModelConfig(
        hidden_dim=384,
        num_blocks=12,
        tokens_mlp_dim=256,
        channels_mlp_dim=1024,
        gelu="tanh",
        layer_norm_epsilon=1e-6,
        init="flax",
        stochastic_depth=0.1,
    ),
}


def model_name(config: ModelConfig) -> str:
    """The named model of these sizes, whatever its classes and details of its functions; else "custom"."""
    sizes = ("image_size", "patch_size", "hidden_dim", "num_blocks", "tokens_mlp_dim", "channels_mlp_dim", "block")
    return next(
        (
            name
            for name, model in MODELS.items()
            if all(getattr(model, size) == getattr(config, size) for size in sizes)
        ),
        "custom",
    )


RECIPES: dict[str, TrainConfig] = {
    "tutorial": TrainConfig(),
    "adamw": TrainConfig(
        batch_size=128,
        optimizer="adamw",
        schedule="cosine",
        warmup_epochs=1.0,
        weight_decay=0.05,
        clip_norm=1.0,
        label_smoothing=0.1,
        epochs=20,
    ),
    "fast": TrainConfig(batch_size=32, learning_rate=2e-3, schedule="cosine", warmup_epochs=0.2, flip=True, epochs=5),
    "nano": TrainConfig(
        batch_size=256,
        optimizer="adamw",
        learning_rate=2e-3,
        schedule="cosine",
        warmup_epochs=5.0,
        weight_decay=0.05,
        clip_norm=1.0,
        label_smoothing=0.1,
        crop_padding=4,
        flip=True,
        trivial_augment=True,
        mixup=0.2,
        cutmix=1.0,
        ema_decay=0.999,
        epochs=300,
    ),
    "strong": TrainConfig(
        batch_size=512,
        optimizer="adamw",
        learning_rate=2e-3,
        schedule="cosine",
        warmup_epochs=5.0,
        weight_decay=0.1,
        clip_norm=1.0,
        label_smoothing=0.1,
        crop_padding=4,
        flip=True,
        trivial_augment=True,
        cutmix=1.0,
        ema_decay=0.999,
        epochs=200,
        precision="bfloat16",
    ),
}
# The model that a recipe is made for: it is trained where no other is named.
RECIPE_MODELS = {"tutorial": "tutorial", "adamw": "tutorial", "fast": "tiny", "nano": "nano", "strong": "strong"}
