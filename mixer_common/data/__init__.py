"""Images and labels as uint8 and int32 arrays: CIFAR-10 from its several sources, or bundled digits."""

from mixer_common.data.dataset import DATASETS, Dataset, default_data_dir, load_dataset
from mixer_common.data.download import DownloadError, host_answers
from mixer_common.data.pictures import load_picture

__all__ = [
    "DATASETS",
    "Dataset",
    "DownloadError",
    "default_data_dir",
    "host_answers",
    "load_dataset",
    "load_picture",
]
