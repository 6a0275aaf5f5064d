"""The parts that the download functions of both frameworks share: does the host answer, and the error of a failure."""

import threading
import urllib.request
from pathlib import Path

from mixer_common.errors import UserError


class DownloadError(UserError):
    """CIFAR-10 could not be downloaded; `reason` says why in a few words."""

    def __init__(self, url: str, data_dir: Path, reason: str | Exception):
        self.reason = (str(reason) or repr(reason)).partition("\n")[0].rstrip(".: ")
        super().__init__(
            f"CIFAR-10 could not be downloaded from {url} ({self.reason}): check the network, or put it "
            f"into {data_dir} as Parquet files, cifar-10-python.tar.gz or a prepared TFDS data set, or use "
            "--dataset digits."
        )


def host_answers(url: str, timeout: float = 3.0) -> bool:
    """Whether a download of `url` starts within `timeout` seconds; it is closed at once."""
    answered = threading.Event()

    def ask():
        try:
            with urllib.request.urlopen(url, timeout=timeout):
                answered.set()
        except (OSError, ValueError):  # unreachable, refused, HTTP error; no valid URL
            pass

    # In a thread, because a name server that does not answer can outlast any socket's time-out.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()
