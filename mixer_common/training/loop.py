"""TODO docstring."""

import math
import signal
import time
from dataclasses import replace
from typing import Any

import numpy as np

from mixer_common.config.train import TrainConfig
from mixer_common.data import Dataset
from mixer_common.errors import UserError
from mixer_common.interface import Framework
from mixer_common.machine import peak_memory
from mixer_common.plan.batches import steps_in_epoch
from mixer_common.plan.epoch import epoch_plan
from mixer_common.plan.schedule import learning_rates, total_steps
from mixer_common.runs import pictures
from mixer_common.runs.checkpoint import Checkpoint
from mixer_common.runs.folder import RunFolder
from mixer_common.terminal import Display
from mixer_common.training import metrics

# Between two looks at the signals. A dispatch of JAX costs more than its steps: buffers are made and given back.
SECONDS_PER_DISPATCH = 2.0


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
            state.config.model,
            self.recipe,
            state.weights,
            dataset.train_images,
            dataset.train_labels,
            moments=state.moments,
            step=state.progress.step,
            device=device,
        )

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
        pictures.first_batch(
            self.dataset.test_images,
            self.dataset.test_labels,
            self.dataset.class_names,
            self.run.pictures / "first_test_batch.png",
        )
        with Display(self.total, self.progress.step) as display:
            while self.progress.step < self.total and not self.signal:
                self._epoch(display)
        if self.progress.step < self.total:
            if not self.progress.step:  # stopped before the first step
                self._save()
            print(
                f"Stopped by {signal.Signals(self.signal).name} at step {self.progress.step:,} of "
                f"{self.total:,}. Go on with: --out {self.run.path} --resume"
            )
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
            pictures.augmented_batch(
                self.dataset.train_images[batch], self.trainer.augmented(0), self.run.pictures / "augmented_batch.png"
            )
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
                raise UserError(
                    f"the training loss is {losses[~np.isfinite(losses)][0]} at step {step:,}: "
                    "lower --learning-rate or set --clip-norm; an epoch's checkpoint stays as it was."
                )
            if timed:
                display.update(
                    f"epoch {epoch + 1}/{epochs}",
                    self.progress.step,
                    float(losses.mean()),
                    timed / seconds * self.recipe.batch_size,
                    (self.total - self.progress.step) * seconds / timed,
                )
        self.progress = replace(
            self.progress,
            train_seconds=self.progress.train_seconds + seconds,
            timed_steps=self.progress.timed_steps + timed,
        )
        if first == last:
            logits = self.trainer.logits(self.dataset.test_images)
            labels = self.dataset.test_labels
            step = self.progress.step
            row = {
                "epoch": epoch + 1,
                "step": step,
                "train_loss": float(self.run.losses()[epoch * self.steps_per_epoch :].mean(dtype=np.float64)),
                "test_loss": metrics.cross_entropy(logits, labels),
                "test_accuracy": metrics.accuracy(logits, labels),
                "learning_rate": float(learning_rates(self.recipe, self.steps_per_epoch, step - 1, step)[0]),
                "train_seconds": seconds,
                "images_per_second": self.recipe.batch_size * timed / max(seconds, 1e-9),
            }
            self.run.add_metrics(row)
            display.line(
                f"epoch {epoch + 1:3d}/{epochs}  training loss {row['train_loss']:.4f}  test loss "
                f"{row['test_loss']:.4f}  test accuracy {row['test_accuracy']:7.2%}  {seconds:.1f} s  "
                f"{row['images_per_second']:,.0f} images/s"
            )
            self.logits = logits
        self._save()

    def _save(self) -> None:
        self.run.save(Checkpoint(self.config, self.progress, self.trainer.weights(), self.trainer.moments()))

    def _introduce(self) -> None:
        height, width = self.config.model.image_size
        config, recipe, versions = self.config, self.recipe, self.framework.versions
        if self.dataset.notice:
            print(f"\n*** {self.dataset.notice} ***\n")
        print(
            f"Model    MLP-Mixer {config.model_name}, {config.model.num_parameters:,} parameters, "
            f"{height}x{width} px in patches of {config.model.patch_size}"
        )
        print(
            f"Data     {self.dataset.source}: {len(self.dataset.train_images):,} training and "
            f"{len(self.dataset.test_images):,} test images of {config.picture_size} px"
        )
        print(
            f"Recipe   {config.recipe_name}: {recipe.optimizer}, learning rate {recipe.learning_rate:g}, batch "
            f"{recipe.batch_size}, {self.total:,} steps, {recipe.precision}, seed {recipe.seed}"
            + "".join(
                f", {name.replace('_', ' ')}"
                for name in (
                    "crop_padding",
                    "flip",
                    "trivial_augment",
                    "operations",
                    "cutout",
                    "mixup",
                    "cutmix",
                    "accumulation",
                    "ema_decay",
                    "freeze_backbone",
                )
                if getattr(recipe, name) != getattr(TrainConfig, name)
            )
        )
        print(
            f"Runs in  {self.framework.name} {versions[self.framework.name]} on {self.framework.describe(self.device)}"
        )
        print(
            f"Output   {self.run.path}" + (f", from step {self.progress.step:,}" if self.progress.step else ""),
            flush=True,
        )

    def _finish(self) -> None:
        dataset, progress, last = self.dataset, self.progress, self.run.metrics[-1]
        epochs = progress.step / self.steps_per_epoch
        self.run.write_summary(
            {
                "framework": self.framework.name,
                "dataset": dataset.name,
                "model": self.config.model_name,
                "recipe": self.config.recipe_name,
                "seed": self.recipe.seed,
                "epochs": int(epochs) if epochs.is_integer() else epochs,
                "steps": progress.step,
                "parameters": self.config.model.num_parameters,
                "test_accuracy": last["test_accuracy"],
                "test_loss": last["test_loss"],
                "train_seconds": progress.train_seconds,
                "images_per_second": self.recipe.batch_size * progress.timed_steps / max(progress.train_seconds, 1e-9),
                "device": self.framework.describe(self.device),
                "versions": self.framework.versions,
                "precision": self.recipe.precision,
                "compile_seconds": progress.compile_seconds,
                "peak_memory_bytes": peak_memory(),
                "dataset_source": dataset.source,
                "dataset_fingerprint": dataset.fingerprint,
                "frameworks": progress.frameworks,
            }
        )
        pictures.curves(
            self.run.losses(),
            self.run.metrics,
            f"{self.framework.name} {self.config.model_name} on {dataset.name}",
            self.run.pictures / "curves.png",
        )
        pictures.confusion(
            metrics.confusion_matrix(self.logits, dataset.test_labels),
            dataset.class_names,
            self.run.pictures / "confusion_matrix.png",
        )
        pictures.predictions(
            dataset.test_images,
            dataset.test_labels,
            np.exp(metrics.log_softmax(self.logits)),
            dataset.class_names,
            self.run.pictures / "predictions.png",
        )
        print(
            f"Done: {last['test_accuracy']:.2%} of {len(dataset.test_images):,} test images right; "
            f"{progress.train_seconds:.0f} s in training steps.\n"
            f"Figures  {self.run.path / 'summary.json'}\nPictures {self.run.pictures}\n"
            f"Weights  {self.run.checkpoint}"
        )

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signal:  # a second time: at once
            raise KeyboardInterrupt
        self.signal = number
        print("\nStopping after this step; the checkpoint follows.", flush=True)
