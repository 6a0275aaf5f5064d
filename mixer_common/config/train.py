"""TrainConfig: how a run trains, the named recipes, and the numbers each step takes from them."""

from dataclasses import dataclass
from typing import Literal

from mixer_common.config.fields import by_name, check_fields
from mixer_common.errors import UserError

# The list of TrivialAugment's wide space (Mueller & Hutter 2021, arXiv 2103.10158), in the order of torchvision's
# TrivialAugmentWide.
OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)


@dataclass(frozen=True)
class TrainConfig:
    """Optimizer, schedule, regularisation, length and seed of a run. Raises UserError on a bad value.

    One step, with g the gradient of the batch's mean loss, worked out as the mean over `accumulation` equal
    parts of the batch, t counting from 1 and lr(t) the schedule:

    1. clip_norm > 0: g ← g · min(1, clip_norm / ‖g‖), ‖g‖ over all parameters that learn.
    2. adam, sgd: g ← g + weight_decay · w; adamw: w ← w − lr · weight_decay · w. Only arrays of two or
       more axes decay; biases and norms never do.
    3. adam, adamw: m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g²,
       w ← w − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε) (Kingma & Ba 2015, arXiv 1412.6980; AdamW:
       Loshchilov & Hutter 2019, arXiv 1711.05101). sgd: b ← momentum · b + g, w ← w − lr · b.
    4. ema_decay > 0: e ← e + (1 − dₜ)(w − e) with dₜ = min(ema_decay, (1+t)/(10+t)), from e = w. The model is
       then e: it is what is evaluated and written (averaging: Polyak & Juditsky 1992, SIAM J. Control Optim. 30;
       dₜ: the rule of TensorFlow's ExponentialMovingAverage with num_updates).

    precision float64 and float32 hold and compute everything so; bfloat16 holds weights and moments in
    float32 and computes the model in bfloat16, the statistics of its norms and the loss in float32.
    freeze_backbone leaves every weight but the head's as it is.
    """

    batch_size: int = 4  # images a step
    accumulation: int = 1  # equal parts in which a step works off its batch: less memory, the same result
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"  # the formulas are in mixer_common/recipe.py
    learning_rate: float = 1e-3  # the largest, after the warm-up
    schedule: Literal["constant", "cosine"] = "constant"  # cosine: falls to 0 over the run
    warmup_epochs: float = 0.0  # of linear rise of the learning rate
    weight_decay: float = 0.0  # of matrices and filters; biases and norms never decay
    clip_norm: float = 0.0  # largest norm of all gradients together; 0: any
    label_smoothing: float = 0.0  # share of each label spread over all classes
    crop_padding: int = 0  # black pixels around an image, of which a window of its size is cut at random
    flip: bool = False  # every other image left to right, at random
    trivial_augment: bool = False  # one operation of TrivialAugment on every image, with a random strength
    operations: tuple[str, ...] = ()  # those that TrivialAugment draws from, such as rotate brightness; none: all 14
    cutout: int = 0  # side of a grey square on every image, pixels; 0: none
    mixup: float = 0.0  # alpha of the Beta(alpha, alpha) that mixes two images and their labels; 0: none
    cutmix: float = 0.0  # alpha of the Beta that sizes a box put from another image; with mixup: one of the two a step
    momentum: float = 0.9  # sgd's
    beta1: float = 0.9  # adam's and adamw's
    beta2: float = 0.999  # adam's and adamw's
    adam_epsilon: float = 1e-8  # adam's and adamw's, added to the root
    ema_decay: float = 0.0  # the model is an exponential moving average of the weights, such as 0.999; 0: they are
    freeze_backbone: bool = False  # the head learns alone
    epochs: int = 10  # passes through the training images
    steps: int = 0  # 0: as many as the epochs have; else the run ends after so many
    precision: Literal["float32", "bfloat16", "float64"] = "float32"  # bfloat16: of the model, not its weights
    seed: int = 0  # of the initial weights and of every random choice

    def __post_init__(self):
        check_fields(self)
        for name, low, high in (
            ("batch_size", 1, None),
            ("accumulation", 1, None),
            ("epochs", 1, None),
            ("steps", 0, None),
            ("seed", 0, 2**63),
            ("learning_rate", 0, None),
            ("warmup_epochs", 0, None),
            ("weight_decay", 0, None),
            ("clip_norm", 0, None),
            ("label_smoothing", 0, 1),
            ("crop_padding", 0, 2**15),
            ("cutout", 0, 2**15),
            ("mixup", 0, None),
            ("cutmix", 0, None),
            ("momentum", 0, 1),
            ("beta1", 0, 1),
            ("beta2", 0, 1),
            ("adam_epsilon", 0, None),
            ("ema_decay", 0, 1),
        ):
            value = getattr(self, name)
            if value < low or (high is not None and value >= high):
                upper = "" if high is None else f" and below {high}"
                raise UserError(f"{name} is {value}, but must be at least {low}{upper}.")
        if self.batch_size % self.accumulation:
            raise UserError(
                f"accumulation {self.accumulation} does not divide batch_size {self.batch_size}: "
                "choose sizes where every part of the batch is as large as the others."
            )
        for name in self.operations:
            by_name("operation", dict.fromkeys(OPERATIONS), name)
        if len(set(self.operations)) < len(self.operations):
            raise UserError(f"operations is {' '.join(self.operations)}, but each may be named once.")
        if self.operations and not self.trivial_augment:
            raise UserError("operations are what TrivialAugment draws from, and it is off: add --trivial-augment.")

    @property
    def images_at_once(self) -> int:
        """Images whose activations are in memory at the same time: a step's batch, or one part of it."""
        return self.batch_size // self.accumulation


# What each optimizer remembers of every parameter.
MOMENTS = {"adam": ("first_moment", "second_moment"), "adamw": ("first_moment", "second_moment"), "sgd": ("momentum",)}


def moment_names(recipe: TrainConfig) -> tuple[str, ...]:
    """What a checkpoint holds beside the model's weights: the optimizer's moments, and where the model is an average,
    the weights as trained."""
    return (*MOMENTS[recipe.optimizer], *(("trained_weights",) if recipe.ema_decay else ()))
