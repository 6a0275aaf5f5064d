"""How a run begins and how it goes on: its model, its folder, and what may change on resumption."""

from dataclasses import replace

import numpy as np
import pytest
from filelock import FileLock
from helpers import identical, random_weights

from mixer_common.config.presets import MODELS
from mixer_common.config.train import TrainConfig
from mixer_common.errors import UserError
from mixer_common.plan.initial import initial_weights
from mixer_common.runs.checkpoint import Checkpoint, RunConfig, TrainingProgress
from mixer_common.runs.folder import RunFolder, lock_resumable
from mixer_common.training.arguments import TrainArguments
from mixer_common.training.start import begin_run, check_config, resume_run, resumed_recipe, train, with_classes
from mixer_common.weights.canonical import ModelWeights

TINY = MODELS["tiny"]


@pytest.fixture
def arguments(config, tmp_path) -> TrainArguments:
    return TrainArguments(
        model="tiny", recipe="tutorial", out=tmp_path / "run", config=config.model, train=config.train
    )


def test_the_data_set_decides_the_number_of_classes(dataset):
    assert with_classes(TINY, TINY, dataset).num_classes == 3
    assert with_classes(replace(TINY, num_classes=3), TINY, dataset).num_classes == 3
    with pytest.raises(UserError, match="num_classes is 7, but digits has 3 classes: leave --num-classes out"):
        with_classes(replace(TINY, num_classes=7), TINY, dataset)


def test_a_run_begins_with_the_weights_of_its_seed(arguments, config, dataset):
    arguments = replace(arguments, train=replace(config.train, seed=5))
    start = begin_run(arguments, None, "numpy", dataset)
    assert identical(start.weights, initial_weights(config.model, 5))
    assert start.moments is None
    assert start.progress == TrainingProgress(0, (("numpy", 0),))
    assert start.run.config == replace(config, train=arguments.train)
    assert RunConfig.from_json(arguments.out / "config.json") == start.run.config


def test_a_run_begins_with_given_weights(arguments, config, dataset, tmp_path, capsys):
    given = ModelWeights(config.model, random_weights(config.model), "canonical")
    arguments = replace(arguments, init_from=tmp_path / "start", model="custom")
    start = begin_run(arguments, given, "numpy", dataset)
    assert identical(start.weights, given.arrays)
    assert (start.run.config.init_from, start.run.config.model_name) == (str(tmp_path / "start"), "custom")
    assert capsys.readouterr().out == f"Start    canonical weights in {tmp_path / 'start'}\n"


def test_the_default_folder_names_the_run(arguments, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = begin_run(replace(arguments, out=None), None, "numpy", dataset)
    assert str(start.run.path) == "runs/numpy-tiny-digits-0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": TrainConfig(batch_size=11)}, "batch_size 11 is larger than the 10 training images"),
        ({"config": replace(TINY, num_classes=7)}, "num_classes is 7"),
    ],
)
def test_what_does_not_fit_leaves_no_folder(arguments, dataset, change, message):
    with pytest.raises(UserError, match=message):
        begin_run(replace(arguments, **change), None, "numpy", dataset)
    assert not arguments.out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resume": True, "overwrite": True}, "--resume and --overwrite exclude each other"),
        ({"resume": True, "out": None}, "--resume needs --out"),
        ({"resume": True}, "config.json is missing"),
    ],
)
def test_nothing_is_loaded_for_a_command_line_that_cannot_be_obeyed(framework, arguments, monkeypatch, change, message):
    monkeypatch.setattr(type(framework), "prepare", None)
    with pytest.raises(UserError, match=message):
        train(framework, replace(arguments, **change), None)


def checkpoint_at(config: RunConfig, step: int, frameworks=(("jax", 0),)) -> Checkpoint:
    weights = random_weights(config.model)
    return Checkpoint(config, TrainingProgress(step, frameworks, 1.5), weights, {"first_moment": weights})


@pytest.mark.parametrize(("framework", "frameworks"), [("jax", (("jax", 0),)), ("torch", (("jax", 0), ("torch", 4)))])
def test_a_run_goes_on_in_either_framework(arguments, config, dataset, framework, frameworks):
    state = checkpoint_at(config, 4)
    with RunFolder.begin(arguments.out, config, overwrite=False) as run:
        run.add_losses(np.ones(5, np.float32), 0)
        run.save(state.progress, state.weights, state.moments)
    arguments = replace(arguments, train=replace(config.train, steps=20))
    start = resume_run(arguments.out, lock_resumable(arguments.out), state, arguments, framework, dataset)
    assert start.progress == replace(state.progress, frameworks=frameworks)
    assert (start.weights, start.moments) == (state.weights, state.moments)
    assert len(start.run.losses()) == 4  # the fifth step comes again
    assert start.run.config == replace(config, train=arguments.train)
    assert RunConfig.from_json(arguments.out / "config.json").train.steps == 20


def test_other_data_do_not_continue_a_run(arguments, config, dataset):
    state = checkpoint_at(replace(config, dataset_fingerprint="0123456789abcdef"), 4)
    with pytest.raises(UserError, match=f"fingerprint 0123456789abcdef, but noise has {dataset.fingerprint}"):
        resume_run(arguments.out, FileLock(arguments.out), state, arguments, "jax", dataset)
    assert not arguments.out.exists()


def test_a_changed_config_is_noticed(config, tmp_path):
    (tmp_path / "config.json").write_text(replace(config, train=replace(config.train, epochs=9)).to_json())
    check_config(tmp_path, config)  # a run may become longer
    (tmp_path / "config.json").write_text(replace(config, train=replace(config.train, learning_rate=0.9)).to_json())
    with pytest.raises(UserError, match=r"config\.json was changed or damaged: it tells another run than the check"):
        check_config(tmp_path, config)


@pytest.mark.parametrize("change", [{"epochs": 9}, {"steps": 40}, {"accumulation": 2}])
def test_length_and_parts_may_change(arguments, config, change):
    recipe = replace(config.train, **change)
    assert resumed_recipe(config, replace(arguments, train=recipe)) == recipe


@pytest.mark.parametrize(
    "change",
    [
        {"model": "nano"},
        {"recipe": "fast"},
        {"config": TINY},
        {"train": TrainConfig(batch_size=2, epochs=3, steps=13, seed=1)},
    ],
)
def test_nothing_else_may_change(arguments, config, change):
    with pytest.raises(UserError, match="was begun with other settings than the command line's: resume it with --out"):
        resumed_recipe(config, replace(arguments, **change))


def test_a_schedule_fixes_the_length(arguments, config):
    config = replace(config, train=replace(config.train, schedule="cosine"))
    assert resumed_recipe(config, replace(arguments, train=config.train)) == config.train
    with pytest.raises(UserError, match=r"the cosine schedule of .* is laid out for its length"):
        resumed_recipe(config, replace(arguments, train=replace(config.train, epochs=9)))
