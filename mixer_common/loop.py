"""The course of a training run, the same for both frameworks: epochs, progress, checkpoints, outputs."""

import math
import platform
import resource
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mixer_common import checkpoint, metrics, plots
from mixer_common.checkpoint import Checkpoint, Progress, RunConfig
from mixer_common.cli import TrainArguments
from mixer_common.config import MODELS, MixerConfig, model_name, weight_shapes
from mixer_common.data import Dataset, load_dataset
from mixer_common.errors import UserError
from mixer_common.init import initial_weights
from mixer_common.plan import EpochPlan, epoch_plan
from mixer_common.progress import Display
from mixer_common.recipe import TrainConfig, learning_rates, total_steps
from mixer_common.resolution import change_image_size
from mixer_common.runlog import RunFolder
from mixer_common.sampling import steps_in_epoch
from mixer_common.weight_files import load_weights, overlap
from mixer_common.weights import check_weights, describe_assumed, replace_head

# Between two looks at the signals. A dispatch of JAX costs more than its steps: buffers are made and given back.
SECONDS_PER_DISPATCH = 2.0


class Trainer(Protocol):
    """What mixer_jax.train.Trainer and mixer_torch.train.Trainer both are."""

    def begin_epoch(self, plan: EpochPlan) -> None: ...
    def train(self, first: int, last: int) -> np.ndarray: ...
    def augmented(self, i: int) -> np.ndarray: ...
    def logits(self, images: np.ndarray) -> np.ndarray: ...
    def weights(self) -> dict[str, np.ndarray]: ...  # the model's: where it is an average, that
    def moments(self) -> dict[str, dict[str, np.ndarray]]: ...  # by recipe.moment_names


@dataclass(frozen=True)
class Framework:
    """What the scripts need of a framework."""

    name: str  # "jax" or "torch"
    versions: dict[str, str]
    prepare: Callable[[str, str], Any]  # (device asked for, precision) -> device; UserError where there is none
    describe: Callable[[Any], str]  # device -> words
    trainer: Callable[..., Trainer]
    logits: Callable[..., np.ndarray]  # (config, weights, images, precision, device) -> (N, num_classes)
    activations: Callable[..., dict[str, np.ndarray]]  # the same -> by name, in network order
    gradients: Callable[..., dict[str, np.ndarray]]  # (..., images, labels, precision, device) -> canonical
    download: Callable[[Path], None]
    out_of_memory: Callable[[BaseException], bool]  # whether an error says that memory did not suffice


def train(framework: Framework, arguments: TrainArguments) -> int:
    """Runs a training as the command line asks; returns the exit code."""
    if arguments.resume and arguments.overwrite:
        raise UserError("--resume and --overwrite exclude each other: give one of them.")
    if arguments.resume and arguments.out is None:
        raise UserError("--resume needs --out: name the folder of the run to continue.")
    run = RunFolder(arguments.out) if arguments.out else None
    state = run.resume() if arguments.resume else None
    device = framework.prepare(arguments.device, arguments.train.precision)
    dataset = load_dataset(arguments.dataset, arguments.data_dir, framework.download)
    if state:
        state = _continued(state, arguments, framework, dataset, run)
        run.write_config(state.config)
    else:
        config, weights = _start(arguments, dataset)
        steps_in_epoch(len(dataset.train_images), arguments.train.batch_size)
        name = model_name(config) if arguments.init_from else arguments.model
        run_config = RunConfig(
            name, arguments.recipe, framework.name, config, arguments.train, dataset.name,
            dataset.source, dataset.fingerprint, dataset.class_names, dataset.train_images.shape[1],
            str(arguments.init_from or ""))
        run = run or RunFolder(Path("runs") / f"{framework.name}-{name}-{dataset.name}-{arguments.train.seed}")
        if arguments.init_from and overlap(run.path, arguments.init_from):
            raise UserError(f"{run.path} is part of what the run begins from, {arguments.init_from}: choose another "
                            "--out.")
        run.create(run_config, arguments.overwrite)
        state = Checkpoint(run_config, Progress(0, ((framework.name, 0),)), weights, None)
    course = None
    try:
        course = _Course(framework, device, run, state, dataset)
        return course.follow()
    except Exception as error:
        if not framework.out_of_memory(error):
            raise
        raise UserError(_too_large(state.config, framework.describe(device), fits=course is not None,
                                   begun=checkpoint.exists(run.checkpoint))) from None


def _too_large(config: RunConfig, device: str, fits: bool, begun: bool) -> str:
    """The sentence for a run that the memory of `device` is too small for. fits: for the images of a step only;
    begun: there is a checkpoint to go on from."""
    size, parts = config.train.batch_size, config.train.accumulation
    if not fits or size == parts:
        return (f"{config.model_name} with its optimizer and data does not fit into the memory of {device}, even with "
                "one image at a time: choose a smaller model.")
    more = next(count for count in range(2 * parts, size + 1) if size % count == 0)
    advice = (f"go on with --resume --accumulation {more}" if begun else
              f"try --overwrite with --batch-size {size // parts // 2 * parts}, or with --accumulation {more}")
    return (f"batch_size {size}{f' with accumulation {parts}' if parts > 1 else ''} does not fit into the memory of "
            f"{device}: {advice}, which gives the same result.")


def _start(arguments: TrainArguments, dataset: Dataset) -> tuple[MixerConfig, Mapping[str, np.ndarray]]:
    """The model that is trained and its first weights: drawn from the seed, or those of --init-from."""
    config, num_classes = arguments.config, len(dataset.class_names)
    start = load_weights(arguments.init_from) if arguments.init_from else None
    default = start.config if start else MODELS[arguments.model]
    if config.num_classes not in (num_classes, default.num_classes):
        raise UserError(f"num_classes is {config.num_classes}, but {dataset.name} has "
                        f"{num_classes} classes: leave --num-classes out, the data set decides.")
    config = replace(config, num_classes=num_classes)
    if start is None:
        return config, initial_weights(config, arguments.train.seed)
    print(f"Start    {start.format} weights in {arguments.init_from}", flush=True)
    stated = {name for name in ("gelu", "layer_norm_epsilon") if getattr(config, name) != getattr(default, name)}
    if assumed := describe_assumed(replace(start, assumed=tuple(set(start.assumed) - stated))):
        print(f"         assumed, since the file does not tell: {assumed}")
    if config.image_width != default.image_width:
        raise UserError(f"image_width {config.image_width} cannot be chosen for given weights: leave --image-width "
                        "out; --image-size carries them to square images.")
    if config.image_size != default.image_size:
        start, how = change_image_size(start, config.image_size)
        print(f"         image size: {how}")
        config = replace(config, image_width=0)
        if config.tokens_mlp_dim == default.tokens_mlp_dim:
            config = replace(config, tokens_mlp_dim=start.config.tokens_mlp_dim)
    if num_classes != start.config.num_classes:
        print(f"         head: {start.config.num_classes} classes replaced by zeros for {num_classes}")
        start = replace_head(start, num_classes)
    check_weights(start.arrays, weight_shapes(config), str(arguments.init_from))
    return config, start.arrays


def _continued(state: Checkpoint, arguments: TrainArguments, framework: Framework, dataset: Dataset,
               run: RunFolder) -> Checkpoint:
    """The checkpoint, with a longer training where that was asked for. UserError where anything else differs."""
    config, progress = state.config, state.progress
    asked = arguments.train
    longer = replace(config.train, epochs=asked.epochs, steps=asked.steps, accumulation=asked.accumulation)
    if (arguments.model, arguments.recipe, arguments.config, asked) != (
            config.model_name, config.recipe_name, config.model, longer):
        raise UserError(f"{run.path} was begun with other settings than the command line's: "
                        "resume it with --out and --resume alone; only --epochs, --steps and --accumulation may "
                        "change.")
    if (longer.epochs, longer.steps) != (config.train.epochs, config.train.steps) and longer.schedule != "constant":
        raise UserError(f"the {longer.schedule} schedule of {run.path} is laid out for its length: "
                        "resume it without --epochs and --steps.")
    if dataset.fingerprint != config.dataset_fingerprint:
        raise UserError(f"{run.path} was trained on {config.dataset_source} with fingerprint "
                        f"{config.dataset_fingerprint}, but {dataset.source} has {dataset.fingerprint}: "
                        "name the same data with --data-dir.")
    frameworks = progress.frameworks
    if frameworks[-1][0] != framework.name:
        frameworks = (*frameworks, (framework.name, progress.step))
    return replace(state, config=replace(config, train=longer), progress=replace(progress, frameworks=frameworks))


class _Course:
    """One training run from where it stands to its end, or to a signal."""

    def __init__(self, framework: Framework, device: Any, run: RunFolder, state: Checkpoint, dataset: Dataset):
        self.framework, self.device, self.run, self.dataset = framework, device, run, dataset
        self.config, self.progress = state.config, state.progress
        self.recipe = state.config.train
        self.steps_per_epoch = steps_in_epoch(len(dataset.train_images), self.recipe.batch_size)
        self.total = total_steps(self.recipe, self.steps_per_epoch)
        self.signal = 0
        self.compiled = False
        self.trainer = framework.trainer(
            state.config.model, self.recipe, state.weights, dataset.train_images, dataset.train_labels,
            moments=state.moments, step=state.progress.step, device=device)

    def follow(self) -> int:
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return self._follow()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _follow(self) -> int:
        self._introduce()
        if self.progress.step >= self.total:
            if self.run.summarised(self.progress.step):
                print(f"The run is complete at step {self.progress.step:,}; --epochs or --steps makes it longer.")
            else:  # stopped between its last checkpoint and its summary
                self.logits = self.trainer.logits(self.dataset.test_images)
                self._finish()
            return 0
        plots.first_batch(self.dataset.test_images, self.dataset.test_labels, self.dataset.class_names,
                          self.run.pictures / "first_test_batch.png")
        with Display(self.total, self.progress.step) as display:
            while self.progress.step < self.total and not self.signal:
                self._epoch(display)
        if self.progress.step < self.total:
            if not self.progress.step:  # stopped before the first step
                self._save()
            print(f"Stopped by {signal.Signals(self.signal).name} at step {self.progress.step:,} of "
                  f"{self.total:,}. Go on with: --out {self.run.path} --resume")
            return 128 + self.signal
        self._finish()
        return 0

    def _epoch(self, display: Display) -> None:
        """The rest of the current epoch, then its evaluation and checkpoint; on a signal the checkpoint alone."""
        epoch, first = divmod(self.progress.step, self.steps_per_epoch)
        last = min(self.steps_per_epoch, self.total - epoch * self.steps_per_epoch)
        plan = epoch_plan(self.config.model, self.recipe, self.dataset.train_images.shape, epoch)
        self.trainer.begin_epoch(plan)
        if plan.augmentation and not self.progress.step:
            batch = plan.indices[0]
            plots.augmented_batch(self.dataset.train_images[batch], self.trainer.augmented(0),
                                  self.run.pictures / "augmented_batch.png")
        epochs = math.ceil(self.total / self.steps_per_epoch)
        seconds, timed, speed = 0.0, 0, 0.0
        while first < last and not self.signal:
            count = min(last - first, max(1, round(speed * SECONDS_PER_DISPATCH)))
            start = time.perf_counter()
            losses = self.trainer.train(first, first + count)
            elapsed = time.perf_counter() - start
            if self.compiled:
                seconds, timed = seconds + elapsed, timed + count
                speed = min(count / elapsed, 10 * max(speed, 1))
            else:
                self.compiled = True
                self.progress = replace(self.progress, compile_seconds=self.progress.compile_seconds + elapsed)
            self.run.add_losses(losses, self.progress.step)
            first += count
            self.progress = replace(self.progress, step=self.progress.step + count)
            if not np.isfinite(losses).all():
                step = self.progress.step - count + int(np.argmin(np.isfinite(losses))) + 1
                raise UserError(f"the training loss is {losses[~np.isfinite(losses)][0]} at step {step:,}: "
                                "lower --learning-rate or set --clip-norm; an epoch's checkpoint stays as it was.")
            if timed:
                display.update(f"epoch {epoch + 1}/{epochs}", self.progress.step, float(losses.mean()),
                               timed / seconds * self.recipe.batch_size,
                               (self.total - self.progress.step) * seconds / timed)
        self.progress = replace(self.progress, train_seconds=self.progress.train_seconds + seconds,
                                timed_steps=self.progress.timed_steps + timed)
        if first == last:
            logits = self.trainer.logits(self.dataset.test_images)
            labels = self.dataset.test_labels
            step = self.progress.step
            row = {
                "epoch": epoch + 1, "step": step,
                "train_loss": float(self.run.losses()[epoch * self.steps_per_epoch:].mean(dtype=np.float64)),
                "test_loss": metrics.cross_entropy(logits, labels),
                "test_accuracy": metrics.accuracy(logits, labels),
                "learning_rate": float(learning_rates(self.recipe, self.steps_per_epoch, step - 1, step)[0]),
                "train_seconds": seconds, "images_per_second": self.recipe.batch_size * timed / max(seconds, 1e-9)}
            self.run.add_metrics(row)
            display.line(f"epoch {epoch + 1:3d}/{epochs}  training loss {row['train_loss']:.4f}  test loss "
                         f"{row['test_loss']:.4f}  test accuracy {row['test_accuracy']:7.2%}  {seconds:.1f} s  "
                         f"{row['images_per_second']:,.0f} images/s")
            self.logits = logits
        self._save()

    def _save(self) -> None:
        self.run.save(Checkpoint(self.config, self.progress, self.trainer.weights(), self.trainer.moments()))

    def _introduce(self) -> None:
        config, recipe, versions = self.config, self.recipe, self.framework.versions
        if self.dataset.notice:
            print(f"\n*** {self.dataset.notice} ***\n")
        print(f"Model    MLP-Mixer {config.model_name}, {config.model.num_parameters:,} parameters, "
              f"{config.model.image_shape[0]}x{config.model.image_shape[1]} px in patches of {config.model.patch_size}")
        print(f"Data     {self.dataset.source}: {len(self.dataset.train_images):,} training and "
              f"{len(self.dataset.test_images):,} test images of {config.picture_size} px")
        print(f"Recipe   {config.recipe_name}: {recipe.optimizer}, learning rate {recipe.learning_rate:g}, batch "
              f"{recipe.batch_size}, {self.total:,} steps, {recipe.precision}, seed {recipe.seed}"
              + "".join(f", {name.replace('_', ' ')}" for name in (
                  "crop_padding", "flip", "trivial_augment", "operations", "cutout", "mixup", "cutmix", "accumulation",
                  "ema_decay", "freeze_backbone")
                  if getattr(recipe, name) != getattr(TrainConfig, name)))
        print(f"Runs in  {self.framework.name} "
              f"{versions[self.framework.name]} on {self.framework.describe(self.device)}")
        print(f"Output   {self.run.path}" + (f", from step {self.progress.step:,}" if self.progress.step else ""),
              flush=True)

    def _finish(self) -> None:
        dataset, progress, last = self.dataset, self.progress, self.run.metrics[-1]
        epochs = progress.step / self.steps_per_epoch
        self.run.write_summary({
            "framework": self.framework.name, "dataset": dataset.name, "model": self.config.model_name,
            "recipe": self.config.recipe_name, "seed": self.recipe.seed,
            "epochs": int(epochs) if epochs.is_integer() else epochs, "steps": progress.step,
            "parameters": self.config.model.num_parameters, "test_accuracy": last["test_accuracy"],
            "test_loss": last["test_loss"], "train_seconds": progress.train_seconds,
            "images_per_second": self.recipe.batch_size * progress.timed_steps / max(progress.train_seconds, 1e-9),
            "device": self.framework.describe(self.device), "versions": self.framework.versions,
            "precision": self.recipe.precision, "compile_seconds": progress.compile_seconds,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "dataset_source": dataset.source, "dataset_fingerprint": dataset.fingerprint,
            "frameworks": progress.frameworks})
        plots.curves(self.run.losses(), self.run.metrics, f"{self.framework.name} {self.config.model_name} on "
                     f"{dataset.name}", self.run.pictures / "curves.png")
        plots.confusion(metrics.confusion_matrix(self.logits, dataset.test_labels), dataset.class_names,
                        self.run.pictures / "confusion_matrix.png")
        plots.predictions(dataset.test_images, dataset.test_labels, np.exp(metrics.log_softmax(self.logits)),
                          dataset.class_names, self.run.pictures / "predictions.png")
        print(f"Done: {last['test_accuracy']:.2%} of {len(dataset.test_images):,} test images right; "
              f"{progress.train_seconds:.0f} s in training steps.\n"
              f"Figures  {self.run.path / 'summary.json'}\nPictures {self.run.pictures}\n"
              f"Weights  {self.run.checkpoint}")

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signal:  # a second time: at once
            raise KeyboardInterrupt
        self.signal = number
        print("\nStopping after this step; the checkpoint follows.", flush=True)


def common_versions() -> dict[str, str]:
    return {"python": platform.python_version(), "numpy": np.__version__}
