"""TrainConfig: how a run trains."""

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

    batch_size: int = 4  # Images per step.
    accumulation: int = 1  # Equal parts of a batch, computed one after the other to need less memory. 1: all at once.
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"  # The update rule: Adam, AdamW, or SGD with momentum.
    learning_rate: float = 1e-3  # Largest learning rate; the warm-up, if there is one, ends at it.
    schedule: Literal["constant", "cosine"] = "constant"  # Learning rate after the warm-up; cosine falls to 0.
    warmup_epochs: float = 0.0  # Epochs in which the learning rate rises linearly to its largest. 0: no warm-up.
    weight_decay: float = 0.0  # Decay of matrices and filters; biases and norms never decay. 0: no decay.
    clip_norm: float = 0.0  # Largest norm of all gradients together; longer ones are scaled down to it. 0: no limit.
    label_smoothing: float = 0.0  # Share of each label that is spread over all classes, below 1. 0: no smoothing.
    crop_padding: int = 0  # Pixels of black border from which a window of the image's size is cut at random. 0: none.
    flip: bool = False  # Flip every image left to right with probability 1/2.
    trivial_augment: bool = False  # Apply one random operation of TrivialAugment with random strength to every image.
    operations: tuple[str, ...] = ()  # The operations that TrivialAugment draws from, by name. None named: all 14.
    cutout: int = 0  # Side in pixels of a grey square at a random place of every image. 0: no square.
    mixup: float = 0.0  # Alpha of the Beta(alpha, alpha) by which mixup weights two images. 0: no mixup.
    cutmix: float = 0.0  # Alpha of the Beta for CutMix's box; with mixup, each step does one of the two. 0: no CutMix.
    momentum: float = 0.9  # Momentum of sgd; the other optimizers ignore it. 0: plain gradient descent.
    beta1: float = 0.9  # Decay rate of the gradients' average in adam and adamw.
    beta2: float = 0.999  # Decay rate of the squared gradients' average in adam and adamw.
    adam_epsilon: float = 1e-8  # Number that adam and adamw add to the root that they divide by.
    ema_decay: float = 0.0  # Decay, such as 0.999, of an average of the weights that is the model. 0: no average.
    freeze_backbone: bool = False  # Train the head alone and leave every other weight as it is.
    epochs: int = 10  # Passes through the training images.
    steps: int = 0  # Steps after which the run ends, whatever --epochs says. 0: as many as the epochs have.
    precision: Literal["float32", "bfloat16", "float64"] = "float32"  # Arithmetic; bfloat16 keeps float32 weights.
    seed: int = 0  # Seed of the initial weights and of every random choice.

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


# The arrays that each optimizer keeps for every parameter.
MOMENTS = {"adam": ("first_moment", "second_moment"), "adamw": ("first_moment", "second_moment"), "sgd": ("momentum",)}


def moment_names(recipe: TrainConfig) -> tuple[str, ...]:
    """Names of the sets of arrays that a checkpoint holds beside the model's weights.

    They are the optimizer's moments and, where the model is an average of weights, the weights as trained.
    """
    return (*MOMENTS[recipe.optimizer], *(("trained_weights",) if recipe.ema_decay else ()))
