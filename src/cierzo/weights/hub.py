"""Repositories of the model hub, or of a mirror (HF_ENDPOINT): which files a model is, and what they are checked by."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

from cierzo.errors import WeightsError
from cierzo.weights.download import DeniedError, FetchError, RemoteFile

SIDE_FILES = (
    "config.json", "generation_config.json", "tokenizer*.json", "tokenizer.model*", "tekken*.json",
    "special_tokens_map.json", "chat_template*", "*.md", "LICENSE*",
)  # fmt: skip
"""What a model has beside its weights."""

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Snapshot:
    """The files of a model at one commit."""

    repo: str
    commit: str
    licence: str | None
    files: list[RemoteFile]


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def snapshot(repo: str, revision: str | None = None, file: str | None = None) -> Snapshot:
    """The files to fetch of a repository, or the one `file`.

    Raises:
        FetchError: no such repository, revision or file; access that has to be asked for; no answer.
    """
    import httpx2
    from huggingface_hub import HfApi, errors, get_token
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    try:
        info = HfApi(endpoint=endpoint(), library_name="cierzo").model_info(
            repo, revision=revision, files_metadata=True
        )
    except errors.GatedRepoError as error:
        raise denied(repo) from error
    except errors.RepositoryNotFoundError as error:
        raise FetchError(
            f"there is no repository {repo} at {endpoint()}, or it is private: check the name, or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FetchError(f"{repo} at {endpoint()} has no revision {revision}") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # The last three are of answers that are no description of a repository.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FetchError(
            f"cannot reach {endpoint()} for {repo} ({reason}): check the network, or HF_ENDPOINT"
        ) from error
    if revision and _COMMIT.fullmatch(revision) and info.sha != revision:
        raise WeightsError(f"{endpoint()} gives commit {info.sha} of {repo} for {revision}: do not trust this mirror")
    if info.gated and not get_token():
        raise denied(repo)
    commit = info.sha or revision or "main"
    sizes = {sibling.rfilename: sibling for sibling in info.siblings or []}
    chosen = _chosen(repo, list(sizes), file)
    card = info.card_data
    headers = build_hf_headers(library_name="cierzo")
    files = []
    for name in chosen:
        sibling = sizes[name]
        if sibling.lfs is not None:
            size, checksum = sibling.lfs.size, f"sha256:{sibling.lfs.sha256}"
        elif sibling.blob_id and sibling.size is not None:
            size, checksum = sibling.size, f"git:{sibling.blob_id}"
        else:
            raise WeightsError(f"{endpoint()} tells no checksum for {name} of {repo}: do not trust this mirror")
        url = f"{endpoint()}/{repo}/resolve/{commit}/{name}"
        files.append(RemoteFile(url, name, size, checksum, headers))
    return Snapshot(repo, commit, getattr(card, "license", None) if card else None, files)


def denied(repo: str) -> DeniedError:
    return DeniedError(
        f"{repo} is gated: ask for access at {endpoint()}/{repo} (its licence is shown there), make a token that may "
        f"read at {endpoint()}/settings/tokens, and run it again with HF_TOKEN=hf_... set"
    )


def _chosen(repo: str, names: list[str], file: str | None) -> list[str]:
    """The files that make a model, out of all in a repository: one format of weights, and what belongs to it."""
    for name in names:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\\" in name:
            raise WeightsError(f"{repo} names a file {name!r} outside its folder: do not trust this repository")
    if file is not None:
        if file not in names:
            raise FetchError(f"{repo} has no file {file}: it has {_some(names)}")
        return [file]
    top = [name for name in names if "/" not in name]

    def some(matches: Callable[[str], Any]) -> list[str]:
        return [name for name in top if matches(name)]

    side = some(lambda name: any(fnmatch(name, pattern) for pattern in SIDE_FILES))
    index = "model.safetensors.index.json"
    choices = (
        ["model.safetensors"] if "model.safetensors" in top else [],
        [index, *some(_SHARD.fullmatch)] if index in top else [],
        some(lambda name: fnmatch(name, "consolidated*.safetensors")),
        some(lambda name: fnmatch(name, "consolidated*.pth")),
    )
    for weights in choices:
        if weights:
            params = ["params.json"] if weights[0].startswith("consolidated") and "params.json" in top else []
            return sorted({*side, *params, *weights})
    gguf = some(lambda name: name.endswith(".gguf"))
    if len(gguf) == 1:
        return gguf
    if gguf:
        raise FetchError(f"{repo} holds {len(gguf)} GGUF files: name one, as in {repo}/{gguf[0]}; it has {_some(gguf)}")
    raise FetchError(f"{repo} has no weights that are read (safetensors, consolidated*.pth, GGUF): it has {_some(top)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
