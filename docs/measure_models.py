"""Measures how far other people's models are from ours, and writes docs/records/other-models.json.

uv run docs/measure_models.py

Each model has random weights. Its file, as its own code writes it, is read here and computed in both frameworks; then
it is written back, and every array must have the same bits. Models that are no package are written anew in
parity_tests/.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
import make_records
import numpy as np
import timm
import torch
from mlp_mixer_pytorch import MLPMixer

import mixer_jax
import mixer_torch
from mixer_common import files
from mixer_common.comparison.differences import relative_error
from mixer_common.config.model import ModelConfig
from mixer_common.config.presets import MODELS
from mixer_common.errors import run_script
from mixer_common.machine import num_threads, processor_name, versions
from mixer_common.weights.files import load_weights
from mixer_common.weights.formats import to_format
from mixer_common.weights.patterns import file_arrays
from mixer_common.weights.reading import flatten

sys.path.append(str(Path(__file__).parents[1] / "parity_tests"))

IMAGES = 2


class OtherModel(NamedTuple):
    """Somebody's model with its weights."""

    title: str
    arrays: dict[str, np.ndarray]  # under its own names
    save: Callable[[Path], None]
    logits: Callable[[np.ndarray], np.ndarray]  # of pixels (B, H, W, 3)
    details: dict[str, Any] = {}  # noqa: RUF012  # what its file does not tell, and is not as usual in its format


def main() -> None:
    jax.config.update("jax_default_matmul_precision", "highest")
    torch.manual_seed(0)
    rows = []
    for model in other_models():
        rows.append(measure(model))
        print(rows[-1], flush=True)
    machine = {"device": f"CPU, {num_threads()} threads", "cpu": processor_name(), "threads": num_threads()}
    packages = ("jax", "flax", "torch", "timm", "mlp-mixer-pytorch")
    record = {
        "date": make_records.today(),
        "machine": machine | make_records.instructions(),
        "versions": versions(*packages),
        "precision": "float32",
        "images": IMAGES,
        "rows": rows,
    }
    make_records.write("other-models", record)


def measure(model: OtherModel) -> dict[str, Any]:
    """The largest difference from its own logits, over the largest of them, in both frameworks; whether what is written
    back has the same bits."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "weights"))
        weights = load_weights(Path(folder, "weights"), **model.details)
    random = np.random.default_rng(1)
    pixels = random.uniform(-1, 1, (IMAGES, *weights.config.image_size, 3)).astype(np.float32)
    theirs = model.logits(pixels)
    in_jax = mixer_jax.create(weights.config, weights=weights.arrays)
    in_torch = mixer_torch.create(weights.config, weights=weights.arrays)
    with torch.no_grad():
        ours = {
            "jax": np.asarray(jax.jit(in_jax.__call__)(pixels)),
            "torch": in_torch(torch.from_numpy(pixels)).numpy(),
        }
    if weights.names:
        written = file_arrays(weights.arrays, weights.names, model.title)
    else:
        written = to_format(weights, weights.format)
    return {
        "weights": model.title,
        "format": weights.format,
        **{name: float(f"{relative_error(logits, theirs):.2g}") for name, logits in ours.items()},
        "written_identical": written.keys() == model.arrays.keys()
        and all(np.array_equal(written[name], array) for name, array in model.arrays.items()),
    }


def other_models() -> Iterator[OtherModel]:
    linen_port, authors_flax, test_ports = map(
        import_module, ("comparison.ports.linen_port", "weights.authors_flax", "weights.test_ports")
    )
    for name in ("mixer_s32_224", "mixer_s16_224", "mixer_b16_224"):
        yield of_torch(f"timm {version('timm')} `{name}`", timm.create_model(name))
    for name in ("s32", "s16", "b16"):
        config = MODELS[name]
        tokens, channels = (size / config.hidden_dim for size in (config.tokens_mlp_dim, config.channels_mlp_dim))
        model: Any = MLPMixer(
            image_size=config.image_size.height, channels=3, patch_size=config.patch_size, dim=config.hidden_dim,
            depth=config.num_blocks, num_classes=config.num_classes, expansion_factor=tokens,  # type: ignore[arg-type]
            expansion_factor_token=channels,
        )  # fmt: skip
        yield of_torch(f"mlp-mixer-pytorch, sizes of `{name}`", model)
    authors = replace(MODELS["s16"], gelu="tanh", layer_norm_epsilon=1e-6)
    yield of_flax("the authors' Flax, sizes of `s16`", authors_flax.MlpMixer(authors), authors)
    for format, (port, _) in test_ports.PORTS.items():
        config = MODELS["tutorial" if format == "tutorial" else "s16"]
        yield of_torch(f"{format}, sizes of `{'tutorial' if format == 'tutorial' else 's16'}`", port(config))
    sizes = MODELS["s16"]
    linen = linen_port.Net(
        sizes.patch_size, sizes.hidden_dim, sizes.num_blocks, sizes.tokens_mlp_dim, sizes.channels_mlp_dim,
        sizes.num_classes,
    )  # fmt: skip
    port = of_flax("a Flax Linen port with names of its own, sizes of `s16`", linen, sizes)
    yield port._replace(details={"gelu": "exact", "layer_norm_epsilon": 1e-5})


def of_torch(title: str, model: torch.nn.Module) -> OtherModel:
    with torch.no_grad():  # no weight is zero: a head that starts at zero would hide all others
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.eval()

    def logits(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()

    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    return OtherModel(title, arrays, lambda path: torch.save(model.state_dict(), path), logits)


def of_flax(title: str, model: Any, config: ModelConfig) -> OtherModel:
    random = np.random.default_rng(0)
    first = model.init(jax.random.key(0), np.zeros((1, *config.image_size, 3), np.float32))["params"]
    parameters = jax.tree.map(
        lambda array: (array + 0.05 * random.standard_normal(array.shape)).astype(np.float32), jax.device_get(first)
    )
    return OtherModel(
        title,
        flatten(parameters),
        lambda path: files.write_file(path, flax.serialization.to_bytes(parameters)),
        lambda pixels: np.asarray(jax.jit(model.apply)({"params": parameters}, pixels)),
    )


if __name__ == "__main__":
    run_script(main)
