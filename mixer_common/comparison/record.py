"""Recordings as a function: what mixer_torch.record and mixer_jax.record agree on."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from mixer_common.comparison.bounds import UNIT_ROUNDOFF
from mixer_common.comparison.modules import ModuleOptions, ModuleSubject
from mixer_common.comparison.recording import Arrays, Inputs, Recording
from mixer_common.comparison.sides import OpenedModel, WeightsSubject
from mixer_common.config.fields import by_name
from mixer_common.config.model import ImageSize, ModelConfig
from mixer_common.config.presets import model_name
from mixer_common.errors import UserError
from mixer_common.interface import Framework
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.files import load_weights
from mixer_common.weights.in_memory import check_images, to_numpy
from mixer_common.weights.pixels import PIXEL_SCALES


def record_module(
    framework: Framework,
    model: Any,
    own: tuple[ModelConfig, Arrays] | None,
    images: Any,
    labels: Any,
    precision: str,
    gradients: bool,
    device: str,
    options: Mapping[str, Any],
) -> Recording:
    """What a module computes on images; see mixer_torch.record and mixer_jax.record.

    own: config and canonical weights, where it is this project's own model.
    """
    check_images(images)
    count = len(images)
    inputs = Inputs(
        to_numpy(images),
        np.zeros(count, np.int32) if labels is None else np.asarray(labels, np.int32).reshape(-1),
        f"{count} images",
    )
    if len(inputs.labels) != count:
        raise UserError(f"labels are {len(inputs.labels)}, but there are {count} images: give one for each.")
    if precision not in UNIT_ROUNDOFF:
        raise UserError(f"precision is {precision!r}, but must be one of {', '.join(UNIT_ROUNDOFF)}.")
    stated = {name: value for name, value in options.items() if name not in ("weights", "layout", "pixels")}
    for name in stated:
        by_name("detail of a module", dict.fromkeys(("gelu", "layer_norm_epsilon", "block")), name)
    name = type(model[0] if isinstance(model, tuple) else model).__name__
    arrays, size = _given_weights(options["weights"])
    if own is not None:
        config = replace(own[0], **stated)
        weights = ModelWeights(config, dict(own[1] if arrays is None else arrays), "canonical")
        description = f"{model_name(config)}, {config.num_parameters:,} parameters"
        opened = OpenedModel(name, description, framework.name, weights)
        return WeightsSubject(opened, framework, partial(framework.prepare, device)).record(
            inputs, precision, gradients
        )
    if options["layout"] not in ("nchw", "nhwc"):
        raise UserError(f"layout is {options['layout']!r}, but must be nchw or nhwc.")
    pixels = options["pixels"]
    pixels = by_name("scale of pixels", PIXEL_SCALES, pixels) if isinstance(pixels, str) else pixels
    framework.prepare(device, precision)
    module = framework.open_module(model)
    if module is None:
        raise UserError(f"module is of type {type(model).__name__}, but must be a module of {framework.name}.")
    given = ModuleOptions(options["layout"], pixels, arrays, None, stated)
    own_size = size or ImageSize(*inputs.images.shape[1:3])
    subject = ModuleSubject(name, module, framework, partial(framework.prepare, device), given, own_size)
    return subject.record(inputs, precision, gradients)


def _given_weights(weights: Any) -> tuple[dict[str, np.ndarray] | None, ImageSize | None]:
    """Canonical arrays of a file or of a dict, and the size of the images that the file tells."""
    if weights is None:
        return None, None
    if isinstance(weights, Mapping):
        return {name: to_numpy(value) for name, value in weights.items()}, None
    loaded = load_weights(weights)
    return loaded.arrays, loaded.config.image_size
