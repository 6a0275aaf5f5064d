"""A run or weights alone, with what their predictions need."""

from dataclasses import dataclass
from pathlib import Path

from mixer_common import files
from mixer_common.errors import UserError
from mixer_common.files import check_sum
from mixer_common.options import WeightsOptions
from mixer_common.runs.checkpoint import RunConfig, TrainingProgress, consistent, read_progress
from mixer_common.weights import folders
from mixer_common.weights.addresses import local_path
from mixer_common.weights.canonical import ModelWeights
from mixer_common.weights.command_line import print_weights, read_weights


@dataclass(frozen=True)
class Classifier:
    """A model that predicts classes."""

    name: str  # as the user wrote it
    weights: ModelWeights
    run: RunConfig | None  # None: weights alone
    progress: TrainingProgress | None  # None: of weights alone, and of a run whose file is missing

    @property
    def precision(self) -> str:
        """That of the run, else that of the weights, but at least float32."""
        dtypes = {str(array.dtype) for array in self.weights.arrays.values()}
        return self.run.train.precision if self.run else "float64" if "float64" in dtypes else "float32"

    @property
    def framework(self) -> str:
        """ "jax" or "torch": the one that trained it last, else JAX."""
        if self.progress:
            return self.progress.frameworks[-1][0]
        return self.run.framework if self.run else "jax"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The run's, else numbers."""
        return self.run.class_names if self.run else tuple(map(str, range(self.weights.config.num_classes)))

    @property
    def picture_size(self) -> int:
        """Height and width, in pixels, of the squares that pictures are scaled to, before the model scales them to its
        own size: those of the run's data, else the longer side of the model's images."""
        return self.run.picture_size if self.run else max(self.weights.config.image_size)


def open_classifier(address: str, options: WeightsOptions) -> Classifier:
    """The model in a run, a checkpoint, or weights at an address, read as the options state; see load_weights.

    Of a run it needs config.json and the weights alone. Raises UserError where there is no complete model, or no head.
    """
    path = local_path(address)
    if path and not path.is_file() and not _has_weights(path):
        raise UserError(
            f"{address} is no run: expected a folder that a training script wrote, with config.json and checkpoint/, "
            "or weights in any format that convert.py reads; name one, for instance of those in runs/."
        )
    folder = folders.weights_in(path).parent if path and path.is_dir() else None
    if folder is None:
        return _open(address, options, None)
    return consistent(folder, lambda folder: _open(address, options, folder))


def _open(address: str, options: WeightsOptions, folder: Path | None) -> Classifier:
    """The model at an address. folder: that of its weights, where it is one of this machine."""
    is_run = folder is not None and _is_run(folder / "config.json")
    if folder and is_run:
        check_sum(folder / "config.json")  # that of the weights is checked where they are read
    weights = read_weights(address, options, without_head=True)
    if not weights.has_head:
        raise UserError(
            f"{address} holds no head, so that it predicts no classes: train one, with --init-from {address}."
        )
    if folder is None or not is_run:
        return Classifier(address, weights, None, None)
    progress = folder / "progress.json"
    if progress.exists():
        check_sum(progress)
    return Classifier(
        address,
        weights,
        RunConfig.from_json(folder / "config.json"),
        read_progress(progress) if progress.exists() else None,
    )


def print_classifier(classifier: Classifier) -> None:
    """Prints what was opened: a run in one line; of weights alone what was read, and what is assumed."""
    run, progress = classifier.run, classifier.progress
    if run is None:
        print_weights("Weights", classifier.name, classifier.weights)
        return
    step = f"step {progress.step:,}, " if progress else ""
    print(f"Run      {classifier.name}: {run.model_name}, {step}trained on {run.dataset_source}", flush=True)


def _has_weights(folder: Path) -> bool:
    try:
        return folder.is_dir() and folders.weights_in(folder).is_file()
    except UserError:
        return False


def _is_run(path: Path) -> bool:
    return path.is_file() and "train" in files.read_json(path)
