"""Augmentation: each operation against PIL, torchvision or NumPy, and equal in both frameworks; draws; whole runs."""

import shutil
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from helpers import AUGMENTATION, assert_runs_equal, explained_by_rounding
from helpers import EVERYTHING as REGULARISED
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import InterpolationMode, TrivialAugmentWide
from torchvision.transforms.autoaugment import _apply_op

import mixer_jax.augment
import mixer_jax.train
import mixer_torch.augment
import mixer_torch.train
from mixer_common.comparison.bounds import UNIT_ROUNDOFF
from mixer_common.config.presets import MODELS, RECIPES
from mixer_common.config.train import TrainConfig, moment_names
from mixer_common.errors import UserError
from mixer_common.plan.augmentation import GREY, OPERATIONS, STRENGTHS, draw, trivial_augment
from mixer_common.plan.epoch import epoch_plan
from mixer_common.plan.initial import initial_weights
from mixer_common.plan.random import generator

H, W = 24, 32
EVERYTHING = replace(
    REGULARISED,
    **AUGMENTATION,
    accumulation=2,
    ema_decay=0.99,
)
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}
# Every strength, one way and the other.
STRENGTH, NEGATIVE = (values.ravel() for values in np.meshgrid(np.arange(STRENGTHS), [False, True]))


def pictures(count: int, height: int = H, width: int = W) -> np.ndarray:
    """uint8 images of all kinds of contrast; the first is of one colour, the second has a channel that is."""
    random = np.random.default_rng(0)
    low, high = np.sort(random.integers(0, 256, (2, count, 1, 1, 3)), axis=0)
    images = random.integers(low, high, (count, height, width, 3), endpoint=True).astype(np.uint8)
    images[0], images[1, ..., 2] = (3, 100, 255), 7
    return images


def augmented(images: np.ndarray, draws: dict[str, np.ndarray], precision: str) -> tuple[np.ndarray, np.ndarray]:
    """What JAX and PyTorch make of the images."""
    cast = {name: value.astype(precision) if value.dtype == np.float64 else value for name, value in draws.items()}
    run = jax.jit(mixer_jax.augment.augment, static_argnums=2)
    ours = run(images, cast, np.dtype(precision))
    theirs = mixer_torch.augment.augment(
        torch.from_numpy(images), {name: torch.tensor(value) for name, value in cast.items()}, getattr(torch, precision)
    )
    assert ours.dtype == theirs.numpy().dtype == np.dtype(precision)
    return np.asarray(ours), theirs.numpy()


def rounding(draws: dict[str, np.ndarray], precision: str) -> float:
    """How far one framework may be from the exact bytes: those are sums of a few products, each below 256 · 2, and a
    sampling coordinate that is off, three roundings of its terms, moves along two slopes of at most 255 a pixel."""
    unit = UNIT_ROUNDOFF[precision]
    error = 16 * 512 * unit
    if "affine" in draws:
        error += 2 * 255 * 3 * unit * (np.abs(draws["affine"]) @ [H, W, 1]).max()
    return error


def operation(name: str) -> dict[str, np.ndarray]:
    """The operation with every strength."""
    return trivial_augment(np.full(STRENGTH.shape, OPERATIONS.index(name)), STRENGTH, NEGATIVE, H, W)


def reference(name: str, image: np.ndarray, strength: int, negative: bool) -> np.ndarray:
    """The operation as PIL or, where it moves pixels, torchvision does it."""
    torchvision_name = {"autocontrast": "AutoContrast"}.get(name, name.title().replace("_", ""))
    magnitudes, signed = TrivialAugmentWide()._augmentation_space(STRENGTHS)[torchvision_name]
    magnitude = round(float(magnitudes[strength]), 5) if magnitudes.ndim else 0.0  # 15.999999 pixels are 16
    magnitude = -magnitude if signed and negative else magnitude
    if name in GEOMETRIC:
        moved = _apply_op(
            torch.from_numpy(image).double().permute(2, 0, 1),
            torchvision_name,
            magnitude,
            InterpolationMode.BILINEAR,
            None,
        )
        return moved.permute(1, 2, 0).numpy()
    picture = Image.fromarray(image)
    by_name: dict[str, Callable[[], Image.Image]] = {
        "identity": lambda: picture,
        "autocontrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
        "solarize": lambda: ImageOps.solarize(picture, magnitude),
        "posterize": lambda: ImageOps.posterize(picture, int(magnitude)),
    }
    changed = by_name[name]() if name in by_name else ENHANCERS[name](picture).enhance(1 + magnitude)
    return np.asarray(changed).astype(np.float64)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_the_reference_s_in_both_frameworks(name, precision):
    images, draws = pictures(len(STRENGTH)), operation(name)
    ours, theirs = augmented(images, draws, precision)
    expected = np.stack([reference(name, *row) for row in zip(images, STRENGTH, NEGATIVE, strict=True)])
    error = rounding(draws, precision)
    assert np.abs(ours - theirs).max() <= 2 * error
    excess = ours - expected
    if name in ("identity", "posterize", "solarize", "equalize"):
        assert (ours == theirs).all()
        assert not excess.any()
    elif name in GEOMETRIC:
        assert np.abs(excess).max() <= error + 2 * 255 * max(H, W) * 1e-5  # the reference's strengths are rounded
    else:  # PIL drops the fractions, and blends in float32
        assert excess.min() >= -error - 1e-3
        assert excess.max() <= 1 + error + 1e-3
    changed = (ours != images).any(axis=(1, 2, 3))
    assert changed.any() == (name != "identity")
    if name not in ("equalize", "autocontrast", "solarize"):  # the last inverts 255 at any strength
        assert not changed[STRENGTH == 0].any()


def test_only_sampling_moves_pixels_and_it_is_continuous(precision):
    """A coordinate that rounding takes to the other side of a pixel changes next to nothing; nor does one outside."""
    images = pictures(9)
    whole = np.tile(np.array([[1.0, 0, 0], [0, 1, 0]]), (9, 1, 1))
    whole[:, :, 2] = [(y, x) for y in (-H, 3, 0) for x in (W, -5, 0)]
    expected = mixer_torch.augment.crop(
        torch.from_numpy(images), torch.from_numpy(whole[:, :, 2]).int(), torch.zeros(9, dtype=torch.bool)
    ).numpy()
    nudge = 64 * UNIT_ROUNDOFF[precision]
    for offset in (-nudge, 0.0, nudge):
        beside = whole.copy()
        beside[:, :, 2] += offset
        for values in (
            mixer_jax.augment.warp(images.astype(precision), beside.astype(precision)),
            mixer_torch.augment.warp(
                torch.from_numpy(images.astype(precision)), torch.from_numpy(beside.astype(precision))
            ),
        ):
            difference = np.abs(np.asarray(values) - expected).max()
            assert difference <= 2 * 255 * 2 * abs(offset)


def test_crop_and_flip_are_exact(precision):
    images = pictures(40)
    recipe = TrainConfig(batch_size=40, crop_padding=4, flip=True)
    draws = {name: rows[1] for name, rows in draw(recipe, (2, H, W), 0).items()}
    padded = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)])
    expected = [
        padded[i, 4 + y : 4 + y + H, 4 + x : 4 + x + W][:, :: -1 if flip else 1]
        for i, ((y, x), flip) in enumerate(zip(draws["corner"], draws["flip"], strict=True))
    ]
    for values in augmented(images, draws, precision):
        assert (values == np.stack(expected)).all()


def test_cutout_is_grey_and_clipped_at_the_border(precision):
    images = pictures(200)
    draws = {name: rows[0] for name, rows in draw(TrainConfig(batch_size=200, cutout=7), (1, H, W), 0).items()}
    expected = images.astype(precision)
    for image, (top, left, bottom, right) in zip(expected, draws["cutout"], strict=True):
        image[top:bottom, left:right] = GREY
    for values in augmented(images, draws, precision):
        assert (values == expected).all()
    sides = draws["cutout"][:, 2:] - draws["cutout"][:, :2]
    assert sides.max() == 7
    assert sides.min() == 4  # the centre is in the image
    assert (sides == 7).all(axis=1).mean() == pytest.approx((H - 6) / H * (W - 6) / W, abs=0.15)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.5, 0.0), (0.0, 1.0), (0.5, 1.0)])
def test_labels_are_mixed_as_pixels_are(mixup, cutmix, precision):
    B, steps = 5, 40
    draws = draw(TrainConfig(batch_size=B, mixup=mixup, cutmix=cutmix), (steps, H, W), 0)
    images = np.tile(np.arange(B, dtype=np.uint8)[:, None, None, None] * 50, (1, H, W, 3))
    for step in range(steps):
        one = {name: rows[step] for name, rows in draws.items()}
        ours, theirs = augmented(images, one, precision)
        assert np.abs(ours - theirs).max() <= rounding(one, precision)
        weight = one["label_weight"]
        expected = weight * images[:, 0, 0, 0] + (1 - weight) * images[::-1, 0, 0, 0]
        np.testing.assert_allclose(ours.mean(axis=(1, 2, 3), dtype=np.float64), expected, atol=rounding(one, precision))
        top, left, bottom, right = one["mixing_box"]
        assert (ours[:, top:bottom, left:right] == images[::-1, top:bottom, left:right]).all()
        if not mixup:
            outside = np.ones((H, W), bool)
            outside[top:bottom, left:right] = False
            assert (ours[:, outside] == images[:, outside]).all()


def test_the_loss_is_the_cross_entropy_with_the_mixed_labels(precision):
    random = np.random.default_rng(0)
    logits = random.normal(size=(7, 10)).astype(precision)
    labels = random.integers(10, size=7)
    for smoothing in (0.0, 0.1):
        for weight in (0.3, 0.0, 1.0):
            soft = weight * np.eye(10)[labels] + (1 - weight) * np.eye(10)[labels[::-1]]
            soft = (1 - smoothing) * soft + smoothing / 10
            wide = logits.astype(np.float64)
            expected = -(soft * (wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))).sum(axis=1).mean()
            values = (
                mixer_jax.train.loss(logits, labels, labels[::-1], np.asarray(weight, precision), smoothing),
                mixer_torch.train.loss(
                    torch.from_numpy(logits),
                    torch.from_numpy(labels),
                    torch.from_numpy(labels).flip(0),
                    torch.tensor(weight, dtype=getattr(torch, precision)),
                    smoothing,
                ),
            )
            for value in values:
                assert float(value) == pytest.approx(expected, rel=16 * UNIT_ROUNDOFF[precision])


def test_neutral_numbers_change_no_bit(precision):
    images = pictures(len(STRENGTH))
    B = len(images)
    draws = operation("identity") | {
        "corner": np.zeros((B, 2), np.int32),
        "flip": np.zeros(B, bool),
        "cutout": np.zeros((B, 4), np.int32),
        "mixing_box": np.zeros(4, np.int32),
        "mixing_weight": np.ones(()),
        "label_weight": np.ones(()),
    }
    assert draws.keys() == draw(EVERYTHING, (1, H, W), 0).keys()
    for values in (*augmented(images, draws, precision), *augmented(images, {}, precision)):
        assert values.tobytes() == images.astype(precision).tobytes()


def test_draws_depend_on_seed_and_epoch_alone():
    shape = (3, H, W)
    first = draw(EVERYTHING, shape, 2)
    for other, same in ((EVERYTHING, True), (replace(EVERYTHING, learning_rate=1.0, precision="float64"), True)):
        assert all((rows == first[name]).all() for name, rows in draw(other, shape, 2).items()) == same
    for other in (draw(EVERYTHING, shape, 3), draw(replace(EVERYTHING, seed=1), shape, 2)):
        for name in ("corner", "flip", "affine", "cutout", "mixing_box", "label_weight"):
            assert (other[name] != first[name]).any(), name
    # What is switched on beside it changes nothing.
    for alone in ({"crop_padding": 4}, {"trivial_augment": True}, {"cutout": 8}):
        for name, rows in draw(TrainConfig(batch_size=8, **alone), shape, 2).items():
            assert name == "flip" or (rows == first[name]).all()
    assert not any(draw(RECIPES[name], shape, 0) for name in ("tutorial", "adamw"))


def test_only_chosen_operations_are_drawn():
    recipe, shape = TrainConfig(trivial_augment=True, batch_size=64), (50, H, W)
    chosen = draw(replace(recipe, operations=("equalize", "posterize")), shape, 0)
    drawn = np.stack([chosen["equalize"], chosen["posterize"] < 255])
    assert not drawn.all(axis=0).any()
    assert ((drawn.mean(axis=(1, 2)) > 0.35) & (drawn.mean(axis=(1, 2)) < 0.55)).all()  # strength 0 shows nothing
    neutral = operation("identity")
    for name in ("solarize", "autocontrast", "blend", "affine"):
        assert (chosen[name] == neutral[name][0]).all(), name
    every = draw(recipe, shape, 0)
    assert all(
        (rows == every[name]).all() for name, rows in draw(replace(recipe, operations=OPERATIONS), shape, 0).items()
    )
    random = generator(0, 0, "trivial_augment")  # nothing chosen: what runs drew before there was a choice
    first = random.integers(14, size=(50, 64)), random.integers(STRENGTHS, size=(50, 64)), random.random((50, 64)) < 0.5
    assert all((rows == every[name]).all() for name, rows in trivial_augment(*first, H, W).items())


def test_draws_cover_their_ranges():
    steps, B = 400, 64
    draws = draw(replace(EVERYTHING, batch_size=B), (steps, 32, 32), 0)
    deviation = 5 / (steps * B) ** 0.5  # five deviations of a share of one half
    assert {name: rows.shape for name, rows in draws.items()} == {
        "corner": (steps, B, 2),
        "flip": (steps, B),
        "posterize": (steps, B),
        "solarize": (steps, B),
        "equalize": (steps, B),
        "autocontrast": (steps, B),
        "blend": (steps, B, 4),
        "affine": (steps, B, 2, 3),
        "cutout": (steps, B, 4),
        "mixing_box": (steps, 4),
        "mixing_weight": (steps,),
        "label_weight": (steps,),
    }
    for axis in range(2):
        values, counts = np.unique(draws["corner"][..., axis], return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        assert np.abs(counts / (steps * B) - 1 / 9).max() < deviation
    assert abs(draws["flip"].mean() - 0.5) < deviation
    blend, affine = draws["blend"], draws["affine"]
    scale, move = affine[..., :2], affine[..., 2]
    shares = {  # of images; where strength 0 is neutral it cannot be told from the identity
        "equalize": draws["equalize"],
        "autocontrast": draws["autocontrast"],
        "posterize": draws["posterize"] < 255,
        "solarize": draws["solarize"] < 256,
        "color": blend[..., 1] != 0,
        "contrast": blend[..., 2] != 0,
        "sharpness": blend[..., 3] != 0,
        "brightness": (blend[..., 0] != 1) & ~blend[..., 1:].any(axis=-1),
        "rotate": scale[..., 0, 0] != 1,
        "shear_x": (scale[..., 0, 0] == 1) & (scale[..., 1, 0] != 0),
        "shear_y": (scale[..., 0, 0] == 1) & (scale[..., 0, 1] != 0),
        "translate_x": (scale == np.eye(2)).all(axis=(-1, -2)) & (move[..., 1] != 0),
        "translate_y": (scale == np.eye(2)).all(axis=(-1, -2)) & (move[..., 0] != 0),
    }
    assert sum(share.astype(int) for share in shares.values()).max() == 1  # one an image
    for name, share in shares.items():
        assert 25 / 31 / 14 - deviation < share.mean() < 1 / 14 + deviation, name
    assert np.unique(blend[..., 0]).tolist() == pytest.approx(
        sorted({*(1 + 0.99 * np.arange(31) / 30), *(1 - 0.99 * np.arange(1, 31) / 30)})
    )
    box, weight = draws["mixing_box"], draws["label_weight"]
    cut = draws["mixing_weight"] == 1
    assert abs(cut.mean() - 0.5) < 2.5 / steps**0.5
    assert ((weight > 0) & (weight < 1))[~cut].all()
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    assert not area[~cut].any()
    assert (weight[cut] == 1 - area[cut] / 1024).all()
    assert (draws["mixing_weight"] == weight)[~cut].all()
    assert box.min() == 0
    assert box.max() == 32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crop_padding": -1}, "crop_padding is -1, but must be at least 0"),
        ({"crop_padding": 1.5}, "whole number"),
        ({"flip": 1}, "true or false"),
        ({"trivial_augment": "wide"}, "true or false"),
        ({"cutout": -8}, "cutout is -8"),
        ({"mixup": -0.1}, "mixup is -0.1"),
        ({"cutmix": float("inf")}, "cutmix is inf, but must be a finite number"),
        ({"operations": ("rotat",)}, r"unknown operation 'rotat' \(did you mean rotate\?\): choose one of identity, "),
        ({"operations": ("rotate",)}, "add --trivial-augment"),
        ({"operations": (3,)}, "must be a list of names"),
        ({"operations": ("rotate", "rotate"), "trivial_augment": True}, "each may be named once"),
    ],
)
def test_a_bad_value_is_a_clear_error(change, words):
    with pytest.raises(UserError, match=words):
        replace(RECIPES["tutorial"], **change)


def test_a_run_with_everything_is_the_same_in_both_and_resumes_to_the_bit(digits):
    jax.config.update("jax_enable_x64", True)
    config, recipe = replace(MODELS["tiny"], stochastic_depth=0.3), replace(EVERYTHING, precision="float64")
    plan = epoch_plan(config, recipe, digits.train_images.shape, 0)
    losses, states = [], []
    for module in (mixer_jax.train, mixer_torch.train):
        whole = module.Trainer(config, recipe, initial_weights(config, 0), digits.train_images, digits.train_labels)
        whole.begin_epoch(plan)
        first = whole.train(0, 50)
        states.append((whole.weights(), whole.moments()))
        resumed = module.Trainer(
            config, recipe, whole.weights(), digits.train_images, digits.train_labels, moments=whole.moments()
        )
        resumed.begin_epoch(plan)
        losses.append(np.concatenate([first, whole.train(50, 100)]))
        assert resumed.train(50, 100).tobytes() == losses[-1][50:].tobytes()
        for ours, theirs in (
            (whole.weights(), resumed.weights()),
            *((whole.moments()[name], resumed.moments()[name]) for name in moment_names(recipe)),
        ):
            assert all(array.tobytes() == theirs[name].tobytes() for name, array in ours.items())
    bound = explained_by_rounding(config, recipe, digits, losses[0])
    difference = np.abs(losses[0] - losses[1])
    print(f"losses differ by {difference.max():.1e}, bound {bound[0]:.1e} to {bound[-1]:.1e}")
    assert (difference <= bound).all()
    assert bound[-1] < 1e-8
    weights, moments = states[0]
    crossed = mixer_torch.train.Trainer(config, recipe, weights, digits.train_images, digits.train_labels, moments)
    crossed.begin_epoch(plan)
    assert (np.abs(crossed.train(50, 100) - losses[0][50:]) <= bound[50:]).all()


@pytest.mark.slow
def test_a_thousand_steps_with_everything_on_cifar10(cifar10):
    jax.config.update("jax_enable_x64", True)
    recipe = replace(EVERYTHING, batch_size=16, warmup_epochs=0.1, precision="float64")
    assert_runs_equal(replace(MODELS["tiny"], stochastic_depth=0.3), recipe, cifar10, 1000)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_torch_compile_augments_alike(digits):
    config, recipe = MODELS["tiny"], replace(EVERYTHING, precision="float64")
    losses = []
    for compiled in (False, True):
        trainer = mixer_torch.train.Trainer(
            config, recipe, initial_weights(config, 0), digits.train_images, digits.train_labels, compiled=compiled
        )
        trainer.begin_epoch(epoch_plan(config, recipe, digits.train_images.shape, 0))
        losses.append(trainer.train(0, 50))
    assert np.abs(losses[0] - losses[1]).max() <= 1e-10


def test_the_scripts_augment_and_draw_a_picture_of_it(script, tmp_path, monkeypatch):
    """Images of 32 pixels in a model of 40: they are scaled after augmentation."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = ("--crop-padding", 4, "--flip", "--trivial-augment", "--cutout", 8, "--mixup", 0.2, "--cutmix", 1.0)
    for framework in ("jax", "torch"):
        code, stdout, _ = script(
            f"train_{framework}",
            "--dataset",
            "digits",
            "--model",
            "tiny",
            "--image-size",
            40,
            "--patch-size",
            8,
            "--num-blocks",
            1,
            "--batch-size",
            16,
            "--precision",
            "float64",
            "--steps",
            10,
            *asked,
            "--out",
            tmp_path / framework,
        )
        assert code == 0
        assert "seed 0, crop padding, flip, trivial augment, cutout, mixup, cutmix\n" in stdout
        with Image.open(tmp_path / framework / "pictures" / "augmented_batch.png") as picture:
            assert min(picture.size) > 500
            assert len(picture.convert("L").getcolors()) > 50
    curves = [np.load(tmp_path / framework / "step_losses.npy") for framework in ("jax", "torch")]
    assert np.abs(curves[0] - curves[1]).max() < 1e-10
