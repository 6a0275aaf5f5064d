"""compare.py --steps: two trainings agree where only rounding differs, and part where a fault was planted."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers import AUGMENTATION, DIGITS, model_weights
from PIL import Image

import mixer_common.comparison.page
import mixer_jax.optimizer
import mixer_jax.train
import mixer_torch.optimizer
import mixer_torch.train
from mixer_common.comparison.recording import Arrays, Inputs, RecordingSubject
from mixer_common.comparison.sides import OpenedModel, WeightsSubject
from mixer_common.comparison.steps import KINDS, StepsComparison, rms_errors, train_and_compare
from mixer_common.comparison.steps_drawing import HEAT_COLOURS, bins, colours, heat_map_svg, save_heat_map
from mixer_common.config.model import ModelConfig, weight_shapes
from mixer_common.config.presets import RECIPES
from mixer_common.config.train import TrainConfig
from mixer_common.data import Dataset
from mixer_common.errors import UserError
from mixer_common.interface import load_framework
from mixer_common.weights.files import save_weights

CONFIG = ModelConfig(
    image_size=(32, 32), patch_size=8, hidden_dim=20, num_blocks=2, tokens_mlp_dim=12, channels_mlp_dim=24
)
# Every set of arrays that a step leaves, and all that a plan holds.
ADAMW = replace(
    RECIPES["adamw"], batch_size=16, warmup_epochs=0.1, learning_rate=2e-3, ema_decay=0.9, clip_norm=0.5, **AUGMENTATION
)
OTHER = {"jax": "torch", "torch": "jax"}


def side(framework: str, precision: str, recipe: TrainConfig | None, config: ModelConfig = CONFIG) -> WeightsSubject:
    """A model of random weights, as a run with the recipe."""
    module = load_framework(framework)
    module.prepare("cpu", precision)
    opened = OpenedModel(framework, "a model", framework, model_weights(config), recipe=recipe)
    return WeightsSubject(opened, module, partial(module.prepare, "cpu"))


def trained(
    dataset: Dataset,
    framework: str = "torch",
    precision: str = "float64",
    recipe: TrainConfig | None = None,
    steps: int = 6,
    config: ModelConfig = CONFIG,
) -> StepsComparison:
    """The framework as side A, the other one as side B."""
    sides = [side(name, precision, recipe, config) for name in (framework, OTHER[framework])]
    return train_and_compare(sides[0], sides[1], (framework, OTHER[framework]), dataset, steps, precision, "cpu")


class Detached:
    """A subject whose gradients of the weights beginning with `prefix` are zero; one without a trainer of its own."""

    def __init__(self, subject: WeightsSubject, prefix: str):
        self._subject, self._prefix = subject, prefix
        self.config, self.weights, self.framework = subject.config, subject.weights, subject.framework

    def with_weights(self, arrays: Arrays) -> "Detached":
        return Detached(self._subject.with_weights(arrays), self._prefix)

    def record(self, inputs, precision, gradients=False, replacements=None):
        recording = self._subject.record(inputs, precision, gradients, replacements)
        found = {
            name: array if not self._prefix or not name.startswith(self._prefix) else np.zeros_like(array)
            for name, array in (recording.gradients or {}).items()
        }
        return replace(recording, gradients=found)


# ---- No false alarm


@pytest.mark.parametrize("recipe", [None, ADAMW], ids=["tutorial", "adamw"])
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_the_frameworks_agree(digits, framework, recipe, precision):
    comparison = trained(digits, framework, precision, recipe, steps=30)
    assert comparison.first is None
    for kind in KINDS:
        assert 0 < comparison.nearest_to_bound(kind).ratio < 0.5
    assert comparison.steps == 30
    assert set(comparison.errors) == {"gradient", "first_moment", "second_moment", "weights"} | (
        {"average"} if recipe else set()
    )
    bound = {"float64": 1e-11, "float32": 1e-2}[precision]  # far below what a fault does
    for name, bounds in comparison.bounds.items():
        counted = [weight not in comparison.without_effect for weight in comparison.names]
        assert (bounds[:, counted] < bound).all(), name


def test_a_subject_trains_as_the_trainer_of_its_framework(digits):
    """A subject without a trainer: the same gradients, and the framework's optimizer, one step at a time."""
    for framework, steps in (("jax", 2), ("torch", 4)):
        inner = side(framework, "float64", replace(RECIPES["adamw"], batch_size=8))
        comparison = train_and_compare(inner, Detached(inner, ""), ("A", "B"), digits, steps, "float64", "cpu")
        assert comparison.first is None
        assert comparison.description.endswith(
            "without label_smoothing, since a module is given images and labels alone"
        )
        if framework == "torch":
            assert all((errors == 0).all() for errors in comparison.errors.values())


# ---- Drift


def test_token_mixings_last_bias_may_drift(digits, precision):
    comparison = trained(digits, precision=precision, steps=20)
    names = {f"blocks.{i}.token_mixing.fc2.bias" for i in range(CONFIG.num_blocks)}
    assert comparison.without_effect == names == {drift.name for drift in comparison.drifts}
    counted = [name not in names for name in comparison.names]
    others = comparison.errors["weights"][:, counted].max()
    assert min(drift.error for drift in comparison.drifts) > 100 * others  # it is no small thing
    changed = {name: errors.copy() for name, errors in comparison.errors.items()}
    changed["weights"][3:, comparison.names.index("blocks.1.token_mixing.fc2.bias")] = 1.0
    assert replace(comparison, errors=changed).first is None
    changed["weights"][4, comparison.names.index("blocks.1.token_mixing.fc1.bias")] = 1.0
    kind, first = replace(comparison, errors=changed).first
    assert (kind, first.step, first.name) == ("weights", 5, "blocks.1.token_mixing.fc1.bias")


def test_the_tutorials_block_has_no_such_bias(digits):
    comparison = trained(digits, config=replace(CONFIG, block="tutorial"))
    assert not comparison.without_effect
    assert not comparison.drifts
    assert comparison.first is None


# ---- Faults: planted in either framework; side B has them


def other_recipe(monkeypatch, framework: str, **changes: object) -> None:
    """The optimizer of one framework has other settings than the recipe."""
    module = {"jax": mixer_jax.optimizer, "torch": mixer_torch.optimizer}[framework]
    create = module.make_optimizer
    monkeypatch.setattr(module, "make_optimizer", lambda recipe, *model: create(replace(recipe, **changes), *model))
    if framework == "torch":  # which clips in its step
        step = module.step
        monkeypatch.setattr(
            module, "step", lambda optimizer, recipe, rate: step(optimizer, replace(recipe, **changes), rate)
        )


def decayed_biases(monkeypatch, framework: str) -> None:
    if framework == "jax":
        decay = mixer_jax.optimizer.optax.add_decayed_weights
        monkeypatch.setattr(mixer_jax.optimizer.optax, "add_decayed_weights", lambda rate, mask: decay(rate))
        return
    create = mixer_torch.optimizer.make_optimizer

    def faulty(recipe, model):
        optimizer = create(recipe, model)
        for group in optimizer.param_groups:
            group["weight_decay"] = recipe.weight_decay
        return optimizer

    monkeypatch.setattr(mixer_torch.optimizer, "make_optimizer", faulty)


def late_schedule(monkeypatch, framework: str) -> None:
    """Every step has the learning rate of the step after it."""
    module = {"jax": mixer_jax.train, "torch": mixer_torch.train}[framework]
    hand_over = module._on_device
    monkeypatch.setattr(
        module,
        "_on_device",
        lambda plan, *rest: hand_over(replace(plan, learning_rates=np.roll(plan.learning_rates, -1)), *rest),
    )


PLAIN_ADAMW = replace(RECIPES["adamw"], batch_size=16, warmup_epochs=0.0)
FAULTS = {  # what is planted, the recipe, the kind that parts, and a part of the cause
    "epsilon": (
        lambda patch, name: other_recipe(patch, name, adam_epsilon=1e-7),
        None,
        "weights",
        "adam_epsilon 1e-07 instead of 1e-08",
    ),
    "beta2": (
        lambda patch, name: other_recipe(patch, name, beta2=0.99),
        None,
        "moments",
        "beta2 0.99 instead of 0.999",
    ),
    "decay of biases": (decayed_biases, PLAIN_ADAMW, "weights", "with weight decay of biases and norms, too"),
    "no clipping": (
        lambda patch, name: other_recipe(patch, name, clip_norm=0.0),
        PLAIN_ADAMW,
        "gradients",
        "Every gradient of B is 1.",
    ),
    "schedule": (late_schedule, PLAIN_ADAMW, "weights", "instead of 0.001, that of the step after it"),
    "warm-up": (late_schedule, replace(PLAIN_ADAMW, warmup_epochs=0.1), "weights", "that of the step after it"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_fault_is_found_in_its_first_step(digits, monkeypatch, framework, fault):
    plant, recipe, expected, cause = FAULTS[fault]
    plant(monkeypatch, framework)
    comparison = trained(digits, OTHER[framework], "float64", recipe)
    kind, first = comparison.first
    assert (kind, first.step) == (expected, 1)
    assert cause in comparison.cause
    earlier = list(KINDS)[: list(KINDS).index(kind)]
    assert all(comparison.ratios(name)[0].max() < 1 for name in earlier)
    if fault == "decay of biases":
        past = comparison.past_bound("weights")[0]
        ends = {name.rpartition(".")[2] for name, found in zip(comparison.names, past, strict=True) if found}
        assert all(len(weight_shapes(CONFIG)[name]) == 1 for name in np.array(comparison.names)[past])
        assert ends == {"weight", "bias"}  # of norms, too


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_detached_gradient_is_found(digits, framework):
    layer = "blocks.1.token_mixing.fc1"
    good = side("torch", "float64", None)
    faulty = Detached(side(framework, "float64", None), layer)
    comparison = train_and_compare(good, faulty, ("A", "B"), digits, 1, "float64", "cpu")
    kind, first = comparison.first
    assert (kind, first.step, first.name, first.others) == ("gradients", 1, f"{layer}.bias", 1)
    assert comparison.cause.startswith(f"In B no gradient arrives at {layer}.bias and 1 more: it is detached")
    assert first.error == pytest.approx(comparison.errors["gradient"][0, comparison.names.index(first.name)])


def test_a_fault_that_begins_later_is_found_there(digits, monkeypatch):
    """Moments that are lost in step 4: beta1 and beta2 act from the second step on."""
    step = mixer_torch.train.Trainer._step

    def faulty(trainer, i):
        if i == 3:
            mixer_torch.optimizer.set_step(trainer.optimizer, 0)
        return step(trainer, i)

    monkeypatch.setattr(mixer_torch.train.Trainer, "_step", faulty)
    kind, first = trained(digits, "jax").first
    assert (kind, first.step) == ("weights", 4)


# ---- The measure


def test_errors_are_measured_against_the_layer():
    reference = {"fc.weight": np.array([[3.0, 4.0]]), "fc.bias": np.array([0.0]), "norm.bias": np.array([np.nan, 1.0])}
    other = {"fc.weight": np.array([[3.0, 4.5]]), "fc.bias": np.array([1.0]), "norm.bias": np.array([np.nan, 1.0])}
    scale = np.sqrt(12.5)
    assert rms_errors(other, reference) == pytest.approx([np.sqrt(0.125) / scale, 1 / scale, 0])
    assert rms_errors(reference, reference).tolist() == [0, 0, 0]
    zero = {"fc.weight": np.zeros((2, 2))}
    assert rms_errors(zero, zero).tolist() == [0]
    assert rms_errors({"fc.weight": np.eye(2)}, zero).tolist() == [np.inf]
    assert np.isnan(rms_errors({"fc.weight": np.full((2, 2), np.nan)}, {"fc.weight": np.eye(2)}))


def test_what_is_no_number_is_past_its_bound(digits):
    comparison = trained(digits, steps=2)
    changed = {name: errors.copy() for name, errors in comparison.errors.items()}
    changed["gradient"][1, 5] = np.nan
    kind, first = replace(comparison, errors=changed).first
    assert (kind, first.step, first.name) == ("gradients", 2, comparison.names[5])


# ---- Pictures


@pytest.fixture
def parting(digits) -> StepsComparison:
    """150 steps of CONFIG that part in step 101, made of two that were trained."""
    comparison = trained(digits, steps=2)

    def repeated(arrays):
        return {name: np.repeat(array, 75, axis=0) for name, array in arrays.items()}

    errors = repeated(comparison.errors)
    column = comparison.names.index("blocks.1.channel_mixing.fc1.weight")
    errors["gradient"][100:, : column + 1] = 1.0
    errors["weights"][101:, :] = np.nan
    losses = tuple(np.repeat(losses, 75) for losses in comparison.losses)
    return replace(comparison, errors=errors, rounding=repeated(comparison.rounding), losses=losses)


def test_colours_of_the_heat_map(parting):
    names = list(HEAT_COLOURS)
    assert len(bins(parting.steps)) == 50  # three steps a column
    gradients, weights = colours(parting, "gradients"), colours(parting, "weights")
    assert gradients.shape == (len(parting.names), 50)
    column = parting.names.index("blocks.1.channel_mixing.fc1.weight")
    assert (gradients[: column + 1, 33:] == names.index("l6")).all()  # more than 1e10 bounds
    assert (gradients[:, :33] <= names.index("l1")).all()
    assert (gradients[column + 1 :] <= names.index("l1")).all()
    assert (weights[:, 34:] == names.index("l6")).all()
    assert (weights[:, :33] <= names.index("l1")).all()


def test_the_picture_and_the_svg(parting, tmp_path):
    save_heat_map(parting, tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width == 690
        seen = {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in picture.convert("RGB").getcolors(1 << 20)}
    assert {"#dbe9f8", "#7c2d0a"} <= seen
    svg = heat_map_svg(parting)
    assert "from step 101" in svg
    assert "token_mixing.fc2 *" in svg
    for name in ("l0", "l6", "text"):
        assert f"var(--{name})" in svg
    assert len(svg) < 100_000


def test_the_colours_are_the_pages():
    template = Path(mixer_common.comparison.page.__file__).with_name("page.html.jinja").read_text()
    for name, colour in HEAT_COLOURS.items():
        assert f"--{name}: {colour};" in template


# ---- The script


@pytest.fixture
def weights(tmp_path):
    save_weights(tmp_path / "model", model_weights(CONFIG), "canonical")
    return tmp_path / "model"


def test_the_script(script, weights, tmp_path, monkeypatch):
    picture = tmp_path / "steps.png"
    options = ("--dataset", "digits", "--images", 2, "--steps", 3, "--steps-picture", picture)
    code, out, _ = script("compare", f"jax:{weights}", f"torch:{weights}", *options)
    assert code == 0
    assert 'Training   the recipe "tutorial", assumed: adam, learning rate 0.001, 4 images a step, seed 0' in out
    assert "The trainings agree for 3 steps: rounding explains every difference." in out
    assert "Drift      blocks." in out
    assert picture.exists()
    other_recipe(monkeypatch, "torch", beta2=0.99)
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    code, out, _ = script("compare", f"jax:{weights}", f"torch:{weights}", *options, "--html", page, "--json", figures)
    assert code == 1
    verdict, cause = "The trainings part in the moments of step 1, at ", "B's second moment decays with beta2 0.99 "
    assert verdict in out
    assert cause in out
    html = page.read_text()
    assert verdict in html
    assert cause.replace("'", "&#39;") in html
    assert "from step 1" in html
    assert "<h1>Their trainings part</h1>" in html
    values = json.loads(figures.read_text())["steps"]
    assert not values["agrees"]
    assert values["cause"].startswith(cause)
    assert values["first_past_bound"]["moments"]["step"] == 1
    assert values["first_past_bound"]["gradients"] is None or values["first_past_bound"]["gradients"]["step"] > 1
    assert np.shape(values["errors"]["second_moment"]) == (3, len(values["weights"]))


PORT = """
import torch

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(20), torch.nn.LayerNorm(20)
        self.tokens = torch.nn.Sequential(torch.nn.Linear(16, 12), torch.nn.GELU(), torch.nn.Linear(12, 16))
        self.channels = torch.nn.Sequential(torch.nn.Linear(20, 24), torch.nn.GELU(), torch.nn.Linear(24, 20))

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 20, 8, 8)
        self.blocks = torch.nn.Sequential(Block(), Block())
        self.norm, self.classify = torch.nn.LayerNorm(20), torch.nn.Linear(20, 10)

    def forward(self, x):
        return self.classify(self.norm(self.blocks(self.embed(x).flatten(2).transpose(1, 2))).mean(1))

def build():
    return Net()

def without_gradient():
    net = Net()
    forward = net.blocks[0].channels[2].forward
    net.blocks[0].channels[2].forward = lambda x: forward(x.detach())
    return net
"""


@pytest.mark.parametrize(("factory", "code"), [("build", 0), ("without_gradient", 1)])
def test_somebodys_module_is_trained(script, weights, tmp_path, factory, code):
    (tmp_path / "port.py").write_text(PORT)
    port = f"torch:{tmp_path / 'port.py'}:{factory}"
    options = ("--weights", weights, "--dataset", "digits", "--images", 2, "--steps", 2)
    found, out, _ = script("compare", f"torch:{weights}", port, *options)
    assert found == code
    if code:
        assert "In B no gradient arrives at blocks.0.channel_mixing.fc1.bias and " in out
    else:
        assert "The trainings agree for 2 steps: rounding explains every difference." in out


def test_a_runs_own_recipe(script, weights, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    code, _, _ = script(
        "train_torch", *DIGITS, "--steps", 2, "--out", run, "--optimizer", "sgd", "--batch-size", 8, "--seed", 3
    )
    assert code == 0
    code, out, _ = script("compare", run, f"torch:{run}", "--dataset", "digits", "--images", 2, "--steps", 2)
    assert code == 0
    assert "Training   the recipe of A: sgd, learning rate 0.001, 8 images a step, seed 3\n" in out


def test_bad_input(script, weights, tmp_path):
    options = ("--dataset", "digits", "--images", 2)
    code, _, err = script("compare", weights, weights, *options, "--steps", 0)
    assert (code, err) == (2, "error: --steps is 0, but at least 1 step must be trained.\n")
    save_weights(tmp_path / "other", model_weights(replace(CONFIG, hidden_dim=24)), "canonical")
    code, _, err = script("compare", weights, tmp_path / "other", *options, "--steps", 2)
    assert code == 2
    assert err.startswith(f"error: --steps trains {tmp_path / 'other'} from the weights of {weights}, but the models ")
    assert "(hidden_dim 20 in A, 24 in B): name two models of the same sizes." in err


def test_a_recording_cannot_be_trained(digits):
    inputs = Inputs(digits.test_images[:2], digits.test_labels[:2], "two digits")
    recorded = RecordingSubject(side("jax", "float64", None).record(inputs, "float64"))
    with pytest.raises(UserError, match=r"--steps trains both sides, and golden\.safetensors is a recording"):
        train_and_compare(
            side("torch", "float64", None), recorded, ("A", "golden.safetensors"), digits, 2, "float64", "cpu"
        )
