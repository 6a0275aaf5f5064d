"""Models in JAX to create, load, save and predict with. Twin of mixer_torch/api.py, which has the same functions.

A model computes where its weights lie, in their precision. On a GPU, mixer_jax.device.prepare("gpu", "float32") makes
JAX compute as exactly as the training scripts do.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax import Array

from mixer_common.config.model import ModelConfig
from mixer_common.errors import UserError
from mixer_common.training.metrics import log_softmax
from mixer_common.weights.in_memory import (
    canonical_arrays,
    check_images,
    first_weights,
    load_model,
    model_config,
    save_model,
    target_size,
    to_numpy,
)
from mixer_common.weights.pixels import PixelScale
from mixer_jax.device import COMPUTE_DTYPE, Device, preserve_settings
from mixer_jax.forward import logits
from mixer_jax.model import Mixer, build_model, to_canonical
from mixer_jax.pixels import bytes_to_pixels

if TYPE_CHECKING:
    from mixer_common.comparison.recording import Recording


def create(
    model: str | ModelConfig,
    seed: int = 0,
    weights: Mapping[str, Any] | None = None,
    device: Device | str | None = None,
    **details: Any,
) -> Mixer:
    """A Mixer of a preset's sizes ("s16") or of a ModelConfig, with the weights that the seed draws or with given ones.

    The same seed draws the same weights in both frameworks, to the bit.

    >>> import mixer_jax
    >>> model = mixer_jax.create("tiny", num_classes=5, seed=1)
    >>> model.config.num_parameters
    78661
    >>> twin = mixer_jax.create(model.config, weights=mixer_jax.weights(model))

    Args:
      model: a name in mixer_common.config.presets.MODELS, or a config.
      seed: of the first weights, at least 0.
      weights: canonical names (mixer_common.config.model.weight_shapes) and arrays of NumPy, PyTorch or JAX. float64
        stays where jax_enable_x64 is set; 16 bits become float32.
      device: a Device or its platform, such as "cpu"; None is JAX's default.
      **details: fields of ModelConfig to change, such as num_classes, image_size or gelu.

    Raises:
      UserError: a name is unknown, a value is out of range, or the weights do not fit.
    """
    config = model_config(model, **details)
    return build_model(config, first_weights(config, seed, weights), _device(device))


def load(path: str | Path, device: Device | str | None = None, **details: Any) -> Mixer:
    """The Mixer in a run, a checkpoint, or weights in any format that docs/formats.md lists: a file, a folder, or an
    address, hf:OWNER/NAME[@REVISION], https://... or gs://BUCKET/PATH.

    >>> import tempfile
    >>> import mixer_jax
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mixer_jax.save(mixer_jax.create("tiny"), f"{folder}/tiny.npz", format="npz")
    ...     model = mixer_jax.load(f"{folder}/tiny.npz", gelu="exact", layer_norm_epsilon=1e-5)
    ...     scaled = mixer_jax.load(f"{folder}/tiny.npz", pixels="imagenet")
    >>> model.config.hidden_dim
    64

    Args:
      path: its content tells the format, not its name.
      device: as in create.
      **details: gelu, layer_norm_epsilon, block and image_size state what a file does not tell. pixels: the scale of
        the pixels that it was made for, inception, imagenet, cifar10 or none, or mean and deviation of pixels from 0 to
        1; it is folded into the stem. prefer: ema, model, or the beginning of their names, where averaged weights lie
        beside those as trained. names: which array is which, a TOML file or a dict as in one.

    Raises:
      UserError: there is no complete Mixer, a detail does not fit it, reading it needs a package that is missing, or
        what lies elsewhere cannot be reached.
    """
    loaded = load_model(path, **details)
    return build_model(loaded.config, loaded.arrays, _device(device))


def save(model: Mixer, path: str | Path, format: str = "canonical", overwrite: bool = False) -> None:
    """Writes a model in a format of docs/formats.md: a file, or for canonical a folder that tells its config, too.

    >>> import tempfile
    >>> import mixer_jax
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mixer_jax.save(mixer_jax.create("tiny"), f"{folder}/tiny")
    ...     mixer_jax.load(f"{folder}/tiny").config == mixer_jax.create("tiny").config
    True

    Args:
      model: its weights are written in float32 or float64.
      path: appears when it is written whole.
      format: canonical, npz, msgpack, timm or lucidrains.
      overwrite: whether to replace what lies at the path.

    Raises:
      UserError: the format is unknown or cannot hold the model, or the path does not suit it or exists already.
    """
    save_model(model.config, weights(model), path, format, overwrite)


def to_pixels(images: np.ndarray | Array, image_size: int | tuple[int, int] | None = None) -> Array:
    """The pixels that a model takes, float32 (B, H, W, 3) from -1 to 1, of uint8 images (B, H, W, 3).

    >>> import mixer_jax
    >>> import numpy as np
    >>> pixels = mixer_jax.to_pixels(np.full((2, 40, 30, 3), 255, np.uint8), image_size=32)
    >>> tuple(pixels.shape), float(pixels.max())
    ((2, 32, 32, 3), 1.0)
    >>> tuple(mixer_jax.create("tiny")(pixels).shape)
    (2, 10)

    Args:
      images: an array of NumPy or JAX.
      image_size: height and width to resize them to, bilinearly; one number for both; None: as they are.

    Raises:
      UserError: the images have another type or shape.
    """
    check_images(images)
    array = images if isinstance(images, Array) else jnp.asarray(to_numpy(images))
    return bytes_to_pixels(array, target_size(array, image_size), np.dtype(np.float32))


def predict(model: Mixer, images: np.ndarray | Array) -> np.ndarray:
    """The probability of every class, float64 (N, num_classes), for uint8 images (N, H, W, 3) of any size.

    >>> import mixer_jax
    >>> import numpy as np
    >>> model = mixer_jax.create("tiny", num_classes=10)
    >>> probabilities = mixer_jax.predict(model, np.zeros((3, 32, 32, 3), np.uint8))
    >>> probabilities.shape, probabilities.sum(axis=1).round(6).tolist()
    ((3, 10), [1.0, 1.0, 1.0])

    Args:
      model: in float32, bfloat16 or float64.
      images: an array of NumPy or JAX; they are resized to the model's image_size, and go through it in batches.

    Raises:
      UserError: the images have another type or shape, or the model another precision.
    """
    check_images(images)
    precision = str(model.head.kernel[...].dtype)
    if precision not in COMPUTE_DTYPE:
        raise UserError(f"the model is in {precision}: convert it to one of {', '.join(COMPUTE_DTYPE)}.")
    if not images.shape[0]:
        return np.zeros((0, model.config.num_classes))
    return np.exp(log_softmax(logits(model, to_numpy(images), precision)))


def record(
    module: nnx.Module | linen.Module | tuple[linen.Module, Mapping[str, Any]],
    images: np.ndarray | Array,
    labels: Any = None,
    precision: str = "float32",
    gradients: bool = False,
    weights: Mapping[str, Any] | str | Path | None = None,
    layout: str = "nhwc",
    pixels: str | PixelScale | None = None,
    device: str = "auto",
    **details: Any,
) -> "Recording":
    """What a Flax module computes on images, watched layer by layer, for compare: one of NNX, or (module, variables) of
    Linen.

    >>> import mixer_jax
    >>> import numpy as np
    >>> from mixer_common.comparison.compare import compare
    >>> images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    >>> model = mixer_jax.create("tiny")
    >>> a, b = mixer_jax.record(model, images, precision="float64"), mixer_jax.record(model, images)
    >>> compare(a, b).first_past_bound is None
    True

    Args:
      module: a Mixer of whatever names; its submodules are matched to the layers of a Mixer. It is left as it is.
      images: uint8 (N, H, W, 3), of NumPy or JAX; they are resized to what the module needs, if that can be known.
      labels: (N,), for the gradients; None: zeros.
      precision: float32, bfloat16 or float64.
      gradients: whether to record the gradients of the mean cross-entropy, of weights and of activations.
      weights: what is loaded into the module: a file, or canonical names and arrays; None: it keeps its own.
      layout: the order of the axes of the pixels that the module takes, nchw or nhwc.
      pixels: their scale: a name in mixer_common.weights.pixels.PIXEL_SCALES, or a PixelScale; None: -1 to 1.
      device: auto, cpu or gpu.
      **details: gelu, layer_norm_epsilon and block state what the module does not tell.

    Raises:
      UserError: the module is no Mixer, or it cannot be called with these images.
    """
    from mixer_common.comparison.record import record_module  # with SciPy, which nothing else here needs
    from mixer_jax.framework import JaxFramework

    own = (module.config, globals()["weights"](module)) if isinstance(module, Mixer) else None
    options = {"weights": weights, "layout": layout, "pixels": pixels, **details}
    with preserve_settings():
        return record_module(JaxFramework(), module, own, images, labels, precision, gradients, device, options)


def weights(model: Mixer) -> dict[str, np.ndarray]:
    """Copies of a model's weights as NumPy arrays in canonical form, which `create` of either framework takes.

    >>> import mixer_jax
    >>> arrays = mixer_jax.weights(mixer_jax.create("tiny"))
    >>> arrays["stem.weight"].shape
    (64, 3, 4, 4)

    Names, shapes and order are those of mixer_common.config.model.weight_shapes; 16 bits become float32.
    """
    return canonical_arrays(model.config, to_canonical(model.config, nnx.state(model, nnx.Param)))


def _device(device: Device | str | None) -> Device:
    if not isinstance(device, str):
        return device
    try:
        return jax.devices(device)[0]
    except RuntimeError:
        raise UserError(
            f"device is {device!r}, which JAX does not find: choose one of {', '.join(map(str, jax.devices()))}."
        ) from None
