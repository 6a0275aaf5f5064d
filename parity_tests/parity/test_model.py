"""The two models are one function: every activation, the logits, the loss, every gradient."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from helpers import random_weights
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import mixer_jax.activations
import mixer_jax.model
import mixer_jax.train
import mixer_torch.activations
import mixer_torch.model
import mixer_torch.train
from mixer_common.comparison.bounds import UNIT_ROUNDOFF, forward_bounds, gradient_bound, gradient_scales
from mixer_common.comparison.differences import LayerDifference, layer_differences, relative_error
from mixer_common.config.model import ModelConfig, activation_names
from mixer_common.config.presets import MODELS
from mixer_common.plan.drop_paths import drop_path_scales

CONFIGS = st.builds(
    lambda rows, columns, patch_size, **sizes: ModelConfig(
        image_size=(rows * patch_size, columns * patch_size), patch_size=patch_size, **sizes
    ),
    rows=st.integers(2, 6),
    columns=st.integers(2, 6),
    patch_size=st.integers(1, 5),
    num_classes=st.integers(2, 12),
    hidden_dim=st.integers(4, 48),
    num_blocks=st.integers(1, 4),
    tokens_mlp_dim=st.integers(1, 40),
    channels_mlp_dim=st.integers(1, 80),
    block=st.sampled_from(["mixer", "tutorial"]),
    gelu=st.sampled_from(["exact", "tanh"]),
    layer_norm_epsilon=st.sampled_from([1e-6, 1e-5]),
    init=st.sampled_from(["pytorch", "flax"]),
    stochastic_depth=st.sampled_from([0.0, 0.3]),
)
# Every example compiles; shrinking one would compile for minutes.
MANY = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def pixels_for(config: ModelConfig, batch_size: int, dtype: str) -> np.ndarray:
    random = np.random.default_rng(1)
    return random.uniform(-1, 1, (batch_size, *config.image_size, 3)).astype(dtype)


def activations(config: ModelConfig, batch_size: int, dtype: str) -> list[dict[str, np.ndarray]]:
    """In JAX and in PyTorch, of the same weights and random images of the model's size."""
    weights = random_weights(config)
    images = np.random.default_rng(1).integers(0, 256, (batch_size, *config.image_size, 3), dtype=np.uint8)
    return [
        mixer_jax.activations.activations_of_weights(config, weights, images, dtype, jax.devices()[0]),
        mixer_torch.activations.activations_of_weights(config, weights, images, dtype, torch.device("cpu")),
    ]


def loss_and_gradients(
    config: ModelConfig, weights: dict, pixels: np.ndarray, labels: np.ndarray, smoothing: float = 0.1
) -> list[tuple[float, dict[str, np.ndarray]]]:
    """In JAX and in PyTorch; with dropped branches where the config drops some."""
    scales = drop_path_scales(config, 1, len(pixels), seed=3, epoch=0)
    drop_path = None if scales is None else scales[0].astype(pixels.dtype)

    graphdef, params = nnx.split(mixer_jax.model.build_model(config, weights, dtype=pixels.dtype))

    def objective(params: nnx.State) -> jax.Array:
        return mixer_jax.train.cross_entropy(nnx.merge(graphdef, params)(pixels, drop_path), labels, smoothing)

    value, grads = jax.jit(jax.value_and_grad(objective))(params)
    results = [(float(value), mixer_jax.model.to_canonical(config, grads))]

    model = mixer_torch.model.build_model(config, weights, dtype=torch.from_numpy(pixels).dtype)
    logits = model(torch.from_numpy(pixels), None if drop_path is None else torch.from_numpy(drop_path))
    value = mixer_torch.train.cross_entropy(logits, torch.from_numpy(labels), smoothing)
    value.backward()
    grads = mixer_torch.model.to_canonical({name: p.grad for name, p in model.named_parameters()})
    return [*results, (value.item(), grads)]


def assert_activations_equal(config: ModelConfig, batch_size: int, dtype: str) -> dict[str, float]:
    ours, theirs = activations(config, batch_size, dtype)
    assert list(ours) == list(theirs) == activation_names(config)
    assert {array.dtype for array in (*ours.values(), *theirs.values())} == {np.dtype(dtype)}
    return within(layer_differences(ours, theirs, forward_bounds(config, dtype)))


def assert_gradients_equal(config: ModelConfig, batch_size: int, dtype: str, bound: float) -> dict[str, float]:
    weights, pixels = random_weights(config), pixels_for(config, batch_size, dtype)
    labels = np.random.default_rng(2).integers(0, config.num_classes, batch_size)
    (loss, gradients), (loss_torch, gradients_torch) = loss_and_gradients(config, weights, pixels, labels)
    assert abs(loss - loss_torch) <= bound * abs(loss_torch)
    return within(
        layer_differences(gradients, gradients_torch, dict.fromkeys(gradients, bound), gradient_scales(gradients_torch))
    )


def within(errors: tuple[LayerDifference, ...]) -> dict[str, float]:
    assert not [error for error in errors if error.past_bound]
    return {error.name: error.max_error for error in errors}


@MANY
@given(config=CONFIGS, batch_size=st.integers(1, 5))
def test_every_activation_is_equal_for_any_shape(precision, config, batch_size):
    assert_activations_equal(config, batch_size, precision)


@MANY
@given(config=CONFIGS, batch_size=st.integers(1, 5))
def test_loss_and_every_gradient_are_equal_for_any_shape(precision, config, batch_size):
    assert_gradients_equal(config, batch_size, precision, gradient_bound(config, precision, batch_size))


def presets(*names: str):
    return pytest.mark.parametrize("name", names)


@presets("tutorial", "tiny", "nano")
def test_small_presets_have_equal_logits_and_gradients(precision, name):
    assert_preset_equal(name, precision, batch_size=4)


@pytest.mark.slow
@presets("s32", "s16", "b32", "b16")
def test_presets_of_the_paper_have_equal_logits_and_gradients(precision, name):
    assert_preset_equal(name, precision, batch_size=2)


def assert_preset_equal(name: str, precision: str, batch_size: int) -> None:
    config = MODELS[name]
    errors = assert_activations_equal(config, batch_size, precision)
    assert errors["head"] <= {"float32": 1e-5, "float64": 1e-12}[precision]
    gradients = assert_gradients_equal(config, batch_size, precision, gradient_bound(config, precision, batch_size))
    if precision == "float64":
        assert max(gradients.values()) <= 1e-10
    print(
        f"{name} {precision}: logits {errors['head']:.1e}, activations {max(errors.values()):.1e}, "
        f"gradients {max(gradients.values()):.1e}"
    )


def test_the_bound_is_tight_enough_to_see_a_wrong_detail():
    """The other GELU, or the other epsilon, is far past the bound in float32."""
    config = MODELS["tiny"]
    ours, _ = activations(config, 2, "float32")
    bounds = forward_bounds(config, "float32")
    for change, layer in (
        ({"gelu": "tanh"}, "blocks.0.token_mixing.gelu"),
        ({"layer_norm_epsilon": 1e-3}, "blocks.0.token_norm"),
    ):
        _, theirs = activations(replace(config, **change), 2, "float32")
        assert next(error.name for error in layer_differences(ours, theirs, bounds) if error.past_bound) == layer


@pytest.mark.parametrize("block", ["mixer", "tutorial"])
def test_the_block_is_the_one_in_the_design(block):
    """Against the formula written out in float64: transposes, two-pass norms, erf."""
    from scipy.special import erf

    config = ModelConfig(
        image_size=8, patch_size=4, hidden_dim=6, num_blocks=1, tokens_mlp_dim=5, channels_mlp_dim=7, block=block
    )
    weights = {name: array.astype(np.float64) for name, array in random_weights(config).items()}
    jax.config.update("jax_enable_x64", True)
    pixels = pixels_for(config, 3, "float64")

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred
            / np.sqrt((centred**2).mean(-1, keepdims=True) + config.layer_norm_epsilon)
            * weights[f"{name}.weight"]
            + weights[f"{name}.bias"]
        )

    def mlp(x, name):
        hidden = x @ weights[f"{name}.fc1.weight"].T + weights[f"{name}.fc1.bias"]
        hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
        return hidden @ weights[f"{name}.fc2.weight"].T + weights[f"{name}.fc2.bias"]

    def transposed(x):
        return x.transpose(0, 2, 1)

    patches = [pixels[:, r : r + 4, c : c + 4] for r in (0, 4) for c in (0, 4)]
    x = np.stack([np.einsum("bhwi,oihw->bo", patch, weights["stem.weight"]) for patch in patches], axis=1)
    x = x + weights["stem.bias"]
    if block == "mixer":
        x = x + transposed(mlp(transposed(norm(x, "blocks.0.token_norm")), "blocks.0.token_mixing"))
    else:
        x = x + mlp(transposed(norm(transposed(x), "blocks.0.token_norm")), "blocks.0.token_mixing")
    x = x + mlp(norm(x, "blocks.0.channel_norm"), "blocks.0.channel_mixing")
    logits = norm(x, "norm").mean(1) @ weights["head.weight"].T + weights["head.bias"]

    bound = forward_bounds(config, "float64")["head"]
    ours = mixer_jax.model.build_model(config, weights)(jnp.asarray(pixels))
    theirs = mixer_torch.model.build_model(config, weights)(torch.from_numpy(pixels))
    assert relative_error(np.asarray(ours), logits) <= bound
    assert relative_error(theirs.detach().numpy(), logits) <= bound


def test_stochastic_depth_drops_whole_branches_of_single_images():
    config = replace(MODELS["tiny"], num_blocks=2)
    weights, pixels = random_weights(config), pixels_for(config, 2, "float32")
    drop_path = np.ones((2, 2, 2), np.float32)
    drop_path[:, :, 1] = 0  # the second image loses every branch
    recorded: dict[str, torch.Tensor] = {}
    mixer_torch.model.build_model(config, weights)(
        torch.from_numpy(pixels), torch.from_numpy(drop_path), lambda name, x: recorded.setdefault(name, x)
    )
    assert torch.equal(recorded["blocks.1.channel_mixing"][1], recorded["stem"][1])
    whole = mixer_torch.model.build_model(config, weights)(torch.from_numpy(pixels))
    assert torch.equal(recorded["head"][0], whole[0])
    ours = mixer_jax.model.build_model(config, weights)(jnp.asarray(pixels), jnp.asarray(drop_path))
    bound = forward_bounds(config, "float32")["head"]
    assert relative_error(np.asarray(ours), recorded["head"].detach().numpy()) <= bound


def test_bytes_become_the_same_pixels_to_the_bit():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    ours = np.asarray(jax.jit(lambda x: mixer_jax.pixels.bytes_to_pixels(x, (16, 16), np.float32))(images))
    theirs = mixer_torch.pixels.bytes_to_pixels(torch.from_numpy(images), (16, 16), torch.float32).numpy()
    assert (ours == theirs).all()
    assert ours.min() == -1
    assert ours.max() == 1
    # The factor rounds, and the product.
    np.testing.assert_allclose(ours, (images / 255 - 0.5) / 0.5, rtol=0, atol=2.0**-23)


@pytest.mark.parametrize("image_shape", [(48, 48), (16, 16), (40, 24)])
def test_images_of_another_size_are_resized_alike(precision, image_shape):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    ours = np.asarray(mixer_jax.pixels.bytes_to_pixels(images, image_shape, np.dtype(precision)))
    theirs = mixer_torch.pixels.bytes_to_pixels(
        torch.from_numpy(images), image_shape, getattr(torch, precision)
    ).numpy()
    assert ours.shape == (2, *image_shape, 3)
    assert relative_error(ours, theirs) <= 16 * UNIT_ROUNDOFF[precision]  # sums of at most 4 x 4 terms


@pytest.mark.parametrize("name", ["tutorial", "tiny", "nano"])
def test_bfloat16_rounds_alike(name):
    """Both compute in bfloat16 from float32 weights, and every layer stays within its roundings."""
    config = MODELS[name]
    ours, theirs = activations(config, 8, "bfloat16")
    _, exact = activations(config, 8, "float32")
    assert ours["head"].dtype == theirs["head"].dtype == np.float32
    bounds = forward_bounds(config, "bfloat16")
    assert 1e-4 < relative_error(theirs["head"], exact["head"]) <= bounds["head"] < 0.25
    within(layer_differences(ours, theirs, bounds))
