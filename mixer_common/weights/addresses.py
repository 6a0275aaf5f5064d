"""Weights by their address: a path of this machine, the Hugging Face hub, a file of the web or of Google's storage."""

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from mixer_common.errors import UserError
from mixer_common.weights import downloads, hub
from mixer_common.weights.containers import ByteCallback

GOOGLE_STORAGE = "https://storage.googleapis.com"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_HUB = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>\S+))?")
_LOCAL = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?/")


class Located(NamedTuple):
    """Weights on this machine."""

    path: Path  # a file or a folder
    origin: str  # where they come from: the path, or an address that names this very content
    notes: tuple[str, ...] = ()  # for people: what was downloaded, or taken from a cache


def local_path(address: str | Path) -> Path | None:
    """The address as a path of this machine; None where it is an address elsewhere."""
    text = str(address)
    return None if text.startswith("hf:") or _SCHEME.match(text) else Path(text)


def locate(address: str | Path, progress: ByteCallback) -> Located:
    """The weights at an address, downloaded where they are not on this machine yet.

    address: a path; hf:OWNER/NAME or hf:OWNER/NAME@REVISION; https://...; gs://BUCKET/PATH. After the latter two,
    #sha256=HEX states the content. Raises UserError where it is no such address, cannot be reached and is in no cache,
    holds no weights, or arrives damaged.
    """
    path = local_path(address)
    if path is not None:
        return Located(path, str(address))
    text = re.sub(r"^(\w+):/+", r"\1://", str(address))  # a Path holds one slash of two
    if text.startswith("hf:"):
        match = _HUB.fullmatch(text)
        if match is None:
            raise UserError(
                f"{text} is no address on the Hugging Face hub: expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION."
            )
        copy = hub.fetch(match["repository"], match["revision"])
        return Located(copy.folder, f"hf:{match['repository']}@{copy.commit}", copy.notes)
    url, sha256 = _split(text)
    if url.startswith("gs://"):
        url = f"{GOOGLE_STORAGE}/{quote(url.removeprefix('gs://'), safe='/%')}"
    if not url.startswith(("https://", "http://")):
        raise UserError(f"{text} is no address that is read here: expected a path, hf:, https:// or gs://.")
    if url.startswith("http://") and not sha256 and not _LOCAL.match(url):
        raise UserError(
            f"{text} is not encrypted, so that its content could be changed on the way: use https://, or state the "
            "content with #sha256=HEX after it."
        )
    copy = downloads.fetch(url, sha256, progress)
    return Located(copy.path, f"{text.partition('#')[0]}#sha256={copy.sha256}", copy.notes)


def _split(text: str) -> tuple[str, str | None]:
    """The address without its fragment, and the SHA-256 that the fragment states. Raises UserError for another one."""
    url, hash_sign, fragment = text.partition("#")
    if not hash_sign:
        return url, None
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if match is None:
        raise UserError(f"{text} ends in #{fragment}: expected #sha256= and 64 hexadecimal digits, or nothing.")
    return url, match[1].lower()
