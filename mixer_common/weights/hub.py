"""Weights of the Hugging Face hub, through huggingface_hub and its cache."""

import glob
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mixer_common.errors import UserError
from mixer_common.network import call_within
from mixer_common.weights import containers, folders

ANSWER_SECONDS = 8.0  # of the hub to the first question
_CONFIGS = ("config.json", "preprocessor_config.json")


class HubCopy(NamedTuple):
    """A repository's weights in the hub's cache."""

    folder: Path
    commit: str  # the revision's hash
    notes: tuple[str, ...]  # for people


def fetch(repository: str, revision: str | None) -> HubCopy:
    """The weights of a repository ("OWNER/NAME") at a branch, tag or commit, default main, with their config.json.

    Only these files are downloaded, and only what is not in the cache yet; a cut connection is taken up again. Without
    a network the cache's copy is used. Raises UserError where there is none either, and where the repository or its
    weights are missing.
    """
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    address = f"hf:{repository}" + (f"@{revision}" if revision else "")
    api = huggingface_hub.HfApi()
    try:
        info = call_within(
            ANSWER_SECONDS, lambda: api.model_info(repository, revision=revision, timeout=ANSWER_SECONDS)
        )
    except HFValidationError as error:
        raise UserError(f"{address} is no address on the Hugging Face hub ({_first_line(error)}).") from None
    except GatedRepoError:
        raise UserError(
            f"{address} is open only to those who accepted its conditions: do so on its page, then log in with "
            "`hf auth login`."
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"hf:{repository} has no revision {revision}: name a branch, a tag or a commit.") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{address} does not exist on the Hugging Face hub, or is private: check the name, or log in with "
            "`hf auth login`."
        ) from None
    except OfflineModeIsEnabled:
        return _cached(repository, revision, address, "HF_HUB_OFFLINE is set")
    except Exception as error:  # such as 503, or of the HTTP library, which differs with huggingface_hub's version
        return _cached(repository, revision, address, _first_line(error))
    names = [sibling.rfilename for sibling in info.siblings or ()]
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=_patterns(names, address, str(info.sha)),
            etag_timeout=ANSWER_SECONDS,
        )
    except UserError:
        raise
    except Exception as error:  # likewise
        raise UserError(
            f"{address} could not be downloaded ({_first_line(error)}): run the command again; what arrived whole is "
            "in the cache."
        ) from None
    commit = Path(folder).name
    return HubCopy(Path(folder), commit, (f"hf:{repository}@{commit}",))


def _patterns(names: list[str], address: str, commit: str) -> list[str]:
    """The files to download, as patterns: one set of weights with its parts, and what tells their pixels.

    Raises UserError where there are no weights, or several of unknown names.
    """
    for name in folders.NAMES:
        if name in names:
            weights = [name]
            if name.endswith(".index.json"):
                stem, dot, suffix = name.removesuffix(".index.json").partition(".")
                weights.append(f"{stem}-*-of-*{dot}{suffix}")
            return [*weights, *_CONFIGS]
    others = [name for name in names if PurePosixPath(name).suffix in containers.WRITERS and "/" not in name]
    if len(others) == 1:
        return [glob.escape(others[0]), *_CONFIGS]
    if others:
        repository = address.removeprefix("hf:").partition("@")[0]
        raise UserError(
            f"{address} holds several files of weights, {', '.join(others[:6])}: name one of them, such as "
            f"https://huggingface.co/{repository}/resolve/{commit}/{others[0]}."
        )
    raise UserError(f"{address} holds no weights, only {', '.join(names[:6]) or 'nothing'}: name another repository.")


def _cached(repository: str, revision: str | None, address: str, reason: str) -> HubCopy:
    """The copy in the cache. Raises UserError where it is missing or not complete; `reason` tells why it is needed."""
    import huggingface_hub

    try:
        folder = Path(
            huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=[])
        )
        folders.weights_in(folder)
    except (OSError, UserError):
        raise UserError(
            f"{address} is not in the cache, and the Hugging Face hub cannot be reached ({reason}): check the network, "
            "or name weights on this machine."
        ) from None
    commit = folder.name
    return HubCopy(folder, commit, (f"hf:{repository}@{commit}, from the cache: the hub cannot be reached ({reason})",))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".: ")
