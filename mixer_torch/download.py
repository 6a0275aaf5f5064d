"""Downloads CIFAR-10 through torchvision. Twin of mixer_jax/download.py."""

import tempfile
from pathlib import Path

from mixer_common.data import DownloadError, host_answers

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"  # the one that torchvision uses


def download_cifar10(data_dir: Path) -> None:
    """Downloads CIFAR-10, checks it and leaves it as `data_dir/cifar-10-batches-py/`, or leaves nothing.

    Raises:
      DownloadError: the host does not answer, the download breaks, or its checksum is wrong.
    """
    data_dir = Path(data_dir)
    if not host_answers(URL):
        raise DownloadError(URL, data_dir, "the host does not answer")

    from torchvision.datasets import CIFAR10

    print(f"Downloading CIFAR-10 (about 170 MB) from {URL} into {data_dir}", flush=True)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        # What breaks off half-way stays in this folder and goes with it.
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as folder:
            CIFAR10(folder, download=True)
            prepared = Path(folder, CIFAR10.base_folder)
            prepared.rename(data_dir / prepared.name)
    except Exception as error:  # torchvision lets RuntimeError through, and urllib's and tarfile's kinds
        raise DownloadError(URL, data_dir, error) from error
