"""The models and the recipes by name: sizes to train, and ways to train them with what came of it.

A new preset is one more entry of MODELS or _RECIPES; `--model` and `--recipe` then know it.
"""

from dataclasses import dataclass, replace

from mixer_common.config.model import ImageSize, ModelConfig
from mixer_common.config.train import TrainConfig

_TUTORIAL = ModelConfig(block="tutorial")


def _paper(patch_size: int, num_blocks: int, hidden_dim: int) -> ModelConfig:
    """A model of the paper's table 1 (arXiv 2105.01601), at 224 pixels and ImageNet's 1000 classes."""
    return ModelConfig(
        image_size=ImageSize(224, 224),
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
    "tiny": replace(_TUTORIAL, block="mixer"),  # the tutorial's sizes with the paper's block
    "nano": ModelConfig(  # for 32 pixels, below 670,000 parameters
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
    "strong": ModelConfig(  # for 32 pixels, on a GPU
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
    """The model in MODELS of these sizes and this block; "custom" where there is none.

    The number of classes and the details that the sizes do not tell (GELU, epsilon, init, stochastic depth) may differ.
    """
    sizes = ("image_size", "patch_size", "hidden_dim", "num_blocks", "tokens_mlp_dim", "channels_mlp_dim", "block")
    for name, model in MODELS.items():
        if all(getattr(model, size) == getattr(config, size) for size in sizes):
            return name
    return "custom"


@dataclass(frozen=True)
class _Recipe:
    train: TrainConfig
    model: str  # a name in MODELS: the model that the recipe is made for
    measured: str  # the time and the accuracy that it was measured with, or that it was not


_RECIPES: dict[str, _Recipe] = {
    "tutorial": _Recipe(
        TrainConfig(),
        model="tutorial",
        measured="65.49% of CIFAR-10's test images in 341 to 368 s in JAX on 2 cores of an AMD EPYC",
    ),
    "adamw": _Recipe(
        TrainConfig(
            batch_size=128,
            optimizer="adamw",
            schedule="cosine",
            warmup_epochs=1.0,
            weight_decay=0.05,
            clip_norm=1.0,
            label_smoothing=0.1,
            epochs=20,
        ),
        model="tutorial",
        measured="70.07% of CIFAR-10's test images in 374 s in JAX on 2 shared cores of an AMD EPYC",
    ),
    "fast": _Recipe(
        TrainConfig(batch_size=32, learning_rate=2e-3, schedule="cosine", warmup_epochs=0.2, flip=True, epochs=5),
        model="tiny",
        measured="67.69% of CIFAR-10's test images in 128 to 143 s in JAX on 2 cores of an AMD EPYC",
    ),
    "nano": _Recipe(
        TrainConfig(
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
        model="nano",
        measured="its 300 epochs not measured yet; with --epochs 10 --warmup-epochs 1, 59.72% in 62 min on 1 core",
    ),
    "strong": _Recipe(
        TrainConfig(
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
        model="strong",
        measured="its 200 epochs not measured yet; with --steps 62, in float32, 22.77% in 66 min on 1 core",
    ),
}
RECIPES: dict[str, TrainConfig] = {name: recipe.train for name, recipe in _RECIPES.items()}
# The model that each recipe is made for: it is trained where no other is named.
RECIPE_MODELS: dict[str, str] = {name: recipe.model for name, recipe in _RECIPES.items()}


def describe_recipes() -> str:
    """For people: every recipe with the model that it is made for, its time and its accuracy."""
    return "; ".join(f"{name} (for --model {recipe.model}): {recipe.measured}" for name, recipe in _RECIPES.items())
