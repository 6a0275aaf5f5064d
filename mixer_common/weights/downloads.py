"""Files of the web in a cache folder: taken up again after a cut connection, checked, and there whole or not at all."""

import base64
import datetime
import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from mixer_common import files
from mixer_common.config.fields import from_dict
from mixer_common.errors import UserError
from mixer_common.machine import cache_dir
from mixer_common.network import call_within
from mixer_common.weights.containers import ByteCallback

ANSWER_SECONDS = 8.0  # of a host to a question, and between two parts of a file
_ATTEMPTS = 3  # after a cut, without a byte more
_CHUNK = 2**20


class CachedFile(NamedTuple):
    """A file in the cache."""

    path: Path
    sha256: str
    notes: tuple[str, ...]  # for people


@dataclass(frozen=True)
class _Version:
    """What a host tells of a file, and of a complete copy its SHA-256 and the day."""

    etag: str = ""
    last_modified: str = ""
    md5: str = ""
    sha256: str = ""
    day: str = ""


class _NoAnswer(Exception):
    """A host cannot be reached, or has trouble; the text says why."""


class _Cut(Exception):
    """The connection broke before the end of the file."""


def fetch(url: str, sha256: str | None, progress: ByteCallback) -> CachedFile:
    """The file at a URL, from the cache where the host or `sha256` says that it is the same.

    A connection that is cut is taken up again, also by a later call. sha256: of the content that the user expects; it
    is checked, and so is the checksum that the host states. Without a network the cache's copy is used. Raises
    UserError where there is none either, where the host has no such file, and where another content arrives.
    """
    folder = cache_dir() / "weights" / hashlib.sha256(url.encode()).hexdigest()[:16]
    name = Path(unquote(urlsplit(url).path)).name
    path = folder / (name if name.strip(".") else "weights")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # no other process downloads into it meanwhile
        cached = _read_version(path)
        notes = ()
        if cached is None or cached.sha256 != sha256:  # else nobody has to be asked
            try:
                cached = _download(url, path, cached, sha256, progress)
            except _NoAnswer as error:
                if cached is None or sha256:
                    raise UserError(
                        f"{url} cannot be reached ({error}) and is not in the cache: check the network, or name "
                        "weights on this machine."
                    ) from None
                notes = (f"the copy of {cached.day}, since the host cannot be reached ({error})",)
    _check(url, "SHA-256", cached.sha256, sha256, "the address")
    return CachedFile(path, cached.sha256, (f"{url}#sha256={cached.sha256}", *notes))


def _download(url: str, path: Path, cached: _Version | None, sha256: str | None, progress: ByteCallback) -> _Version:
    """Brings the file to `path`; returns what is known of it, which is `cached` where the host still has the same."""
    part = files.hidden_sibling(path, "part")
    attempts, is_begun = 0, False
    while True:
        done = _size(part)
        try:
            version = _receive(url, part, _read_version(part), cached, progress)
            break
        except (_Cut, _NoAnswer) as error:
            if isinstance(error, _NoAnswer) and not is_begun:
                raise
            is_begun = True
            attempts = 0 if _size(part) > done else attempts + 1
            if attempts == _ATTEMPTS:
                raise UserError(
                    f"the connection to {url} was cut after {_size(part) / 1e6:,.1f} MB ({error}): run the command "
                    "again, which goes on from there."
                ) from None
            time.sleep(attempts)
    if version is cached:
        return version
    digest = _digest(part, "sha256")
    try:
        _check(url, "MD5", _digest(part, "md5") if version.md5 else "", version.md5, "the host")
        _check(url, "SHA-256", digest, sha256, "the address")
    except UserError:
        _remove(part)
        raise
    _version_path(path).unlink(missing_ok=True)  # it is of another content
    part.replace(path)
    version = replace(version, sha256=digest, day=datetime.date.today().isoformat())
    _write_version(path, version)
    _remove(part)
    return version


def _receive(url: str, part: Path, begun: _Version | None, cached: _Version | None, progress: ByteCallback) -> _Version:
    """Receives the file, or the rest of the `begun` one, as `part`; returns `cached` where the host has the same.

    Raises _NoAnswer, _Cut, or UserError where the host has no such file.
    """
    size = _size(part) if begun else 0
    if size and begun and (mark := begun.etag or begun.last_modified):
        headers = {"Range": f"bytes={size}-", "If-Range": mark}
    elif cached and (cached.etag or cached.last_modified):
        known = {"If-None-Match": cached.etag, "If-Modified-Since": cached.last_modified}
        headers = {name: value for name, value in known.items() if value}
    else:
        headers = {}
    response = _open(url, headers)
    if response is None:
        if cached and "If-Range" not in headers:
            return cached
        _remove(part)
        raise _Cut("the host does not go on")
    with response:
        if response.headers.get_content_type() == "text/html":
            raise UserError(f"{url} is a page of HTML and no file of weights: use the address of the download itself.")
        is_rest = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {size}-")
        if response.status == 206 and not is_rest:
            _remove(part)
            raise _Cut("the host sent another part")
        size = size if is_rest else 0
        version = _stated_version(response.headers)
        _write_version(part, version)
        length = response.headers.get("Content-Length")
        total = size + int(length) if length and length.isdigit() else 0
        with part.open("ab" if is_rest else "wb") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                size += len(chunk)
                progress("downloading", size, max(total, size))
        if size < total:
            raise _Cut("the host closed it")
    return version


def _chunks(response: Any) -> Iterator[bytes]:
    """The content as it arrives. Raises _Cut."""
    try:
        while chunk := response.read(_CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(_reason(error)) from None


def _open(url: str, headers: dict[str, str]) -> Any:
    """The response to a request, or None where the host has nothing new, or not the asked part.

    Raises _NoAnswer, and UserError where the host has no such file.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "mlp-mixer-parity", **headers})
    try:
        # A second more: the socket's own time-out comes first, and says what it waited for.
        response = call_within(ANSWER_SECONDS + 1, lambda: urllib.request.urlopen(request, timeout=ANSWER_SECONDS))
    except urllib.error.HTTPError as error:
        if error.code in (304, 416):
            return None
        if error.code == 429 or error.code >= 500:
            raise _NoAnswer(f"{error.code} {error.reason}") from None
        raise UserError(
            f"{url} cannot be read, the host answers {error.code} {error.reason}: check the address."
        ) from None
    except (http.client.InvalidURL, ValueError) as error:
        raise UserError(f"{url} is no address ({error}): check it.") from None
    except (OSError, http.client.HTTPException) as error:
        raise _NoAnswer(_reason(error)) from None
    if url.startswith("https:") and not response.url.startswith("https:"):
        response.close()
        raise UserError(f"{url} leads to {response.url}, which is not encrypted: use another address.")
    return response


def _stated_version(headers: Any) -> _Version:
    """What the host states: marks of the version, and the MD5 of the content."""
    md5 = ""
    stored = headers.get("x-goog-stored-content-encoding", "identity")  # of a compressed file, the checksum is another
    for value in headers.get_all("x-goog-hash", []):
        match = re.search(r"md5=([A-Za-z0-9+/]{22}==)", value)
        if match and stored == "identity":
            md5 = base64.b64decode(match[1]).hex()
    etag = headers.get("ETag", "")
    # Amazon's storage gives a file's MD5 as its ETag, unless it came in parts or is encrypted with a key of its own.
    encryption = headers.get("x-amz-server-side-encryption", "AES256")
    if headers.get("Server") == "AmazonS3" and encryption == "AES256" and re.fullmatch(r'"[0-9a-f]{32}"', etag):
        md5 = etag.strip('"')
    if etag.startswith("W/"):
        etag = ""  # it names no content to the bit
    return _Version(etag, headers.get("Last-Modified", ""), md5)


def _check(url: str, kind: str, found: str, expected: str | None, by: str) -> None:
    """Raises UserError where a checksum is not the expected one, if there is an expected one."""
    if expected and found != expected:
        raise UserError(
            f"{url} arrived with the {kind} {found}, but {by} states {expected}: it is another file, or was damaged on "
            "the way; try again, or use another address."
        )


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _remove(part: Path) -> None:
    for path in (part, _version_path(part)):
        path.unlink(missing_ok=True)


def _version_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_version(path: Path) -> _Version | None:
    """What was noted of the file, or None where the file or the note is missing."""
    try:
        values = json.loads(_version_path(path).read_bytes())
        return from_dict(_Version, values, str(path)) if path.is_file() else None
    except (OSError, ValueError, UserError):
        return None


def _write_version(path: Path, version: _Version) -> None:
    files.replace_file(_version_path(path), (json.dumps(asdict(version), indent=2) + "\n").encode())


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return (str(reason) or type(reason).__name__).strip().splitlines()[0].rstrip(".: ")
