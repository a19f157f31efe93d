"""Where models come from: a path, the user's store, the catalogue, a hub, an address, or a torrent."""

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from cierzo.errors import CierzoError, WeightsError
from cierzo.progress import progress_bar
from cierzo.weights.catalogue import Entry, catalogue
from cierzo.weights.download import DeniedError, FetchError, RemoteFile, fetch_file
from cierzo.weights.hub import denied, snapshot
from cierzo.weights.index import fetch_from_index
from cierzo.weights.store import (
    Origin,
    begin,
    check_space,
    cierzo_home,
    complete,
    locked,
    models_folder,
    origin_of,
    size_text,
    stored_models,
)
from cierzo.weights.torrent import fetch_torrent

__all__ = ["FetchError", "cierzo_home", "pull", "resolve_model"]

_REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+?))?(/(?P<file>[^@]+\.gguf))?")
_LINKS = ("magnet:", "http://", "https://")
_PACKED = ("-q4t", "-q4", "-q8")
_WEIGHTS = (".safetensors", ".gguf", ".pth")  # what is too large to be fetched again
_PACK_FROM = 1_000_000_000
"""Bytes from which on a model that is fetched to be run at once is packed on the way."""


@dataclass(frozen=True)
class Wanted:
    """What a user asked for: the name that it gets in the store, and where it is to be had."""

    name: str
    entry: Entry | None = None
    repo: str | None = None
    revision: str | None = None
    file: str | None = None
    url: str | None = None
    sha256: str | None = None
    """Of the address's file, if it was given."""
    torrent: str | None = None

    @property
    def source(self) -> str:
        return self.repo or self.url or self.torrent or ""

    @property
    def licence(self) -> str | None:
        return self.entry.licence if self.entry else None


def resolve_model(model: str | Path | None, *, progress: bool) -> Path:
    """Path of a model's file or folder.

    Args:
        model: a path, the name of a model in the store, or one of the catalogue, which is fetched when it is not there
            (a large one packed into few bits on the way); None is the default model.
        progress: say on stderr what is fetched, with a bar on a terminal. Large models are always told.

    Raises:
        CierzoError: none of these, or it cannot be fetched.
    """
    name = catalogue().default if model is None else str(model)
    entry = catalogue().find(name)
    if path := in_store(entry.name if entry else name):
        return path
    if entry is not None:
        pack = "q4t" if entry.size >= _PACK_FROM else None
        return pull(name, pack=pack, progress=progress or entry.size >= _PACK_FROM)
    path = Path(name).expanduser()
    if not _exists(path):
        raise CierzoError(
            f"there is no model {name!r}: give the path of a GGUF file or of a checkpoint's folder, a name that "
            f"`cierzo ls --all` shows, such as {catalogue().default}, or fetch it with `cierzo pull`"
        )
    return path


def in_store(name: str) -> Path | None:
    """A whole model of the store, as it was published or else packed: nothing else ever has its name there."""
    folder, entry = models_folder(), catalogue().find(name)
    if entry and entry.index and _complete(folder / entry.index.filename, entry):
        return folder / entry.index.filename
    if not entry and _safe(name) != name and (not _REPOSITORY.fullmatch(name) or _exists(Path(name))):
        return None  # a path
    folders = [folder / f"{_safe(name)}{packed}" for packed in ("", *_PACKED)]
    file = folder / f"{name}.gguf"  # of the index, as `stored_models` names it
    return next((path for path in folders if path.is_dir()), file if not entry and file.is_file() else None)


def _complete(target: Path, entry: Entry) -> bool:
    """Whether the index's file is there, by its size alone: its hash was checked before it got its name."""
    return target.is_file() and target.stat().st_size == entry.size


def pull(reference: str, *, source: str | None = None, pack: str | None = None, progress: bool = True) -> Path:
    """Bring a model into the store, unless it is there; returns its path.

    Args:
        reference: a name of the catalogue, `owner/name[@revision][/FILE.gguf]` on the hub, an http(s) address of a GGUF
            file (with `#sha256=...` it is checked), a magnet link, a .torrent file, or a path, which stays where it is.
        source: one of "index", "hub", "magnet" for a name of the catalogue that several have.
        pack: format (q4t, q4 or q8) to pack the weights into while they come; the original is not kept.
        progress: say on stderr what is fetched, with a bar on a terminal.

    Raises:
        FetchError: it is not to be had from there.
        CierzoError: no room, a full disk, wrong bytes, weights that cannot be read.
    """
    if path := _here(reference):
        if pack:
            raise CierzoError(f"{reference} is here already: `cierzo quantize {reference}` packs it")
        return path
    wanted = _wanted(reference, source)
    if wanted.entry and wanted.entry.index and not wanted.repo and not wanted.torrent:
        if pack:
            raise CierzoError(f"{wanted.name} of the index is in few bits already: leave out --quantize")
        return _pull_file(wanted.entry, progress=progress)
    target = models_folder() / (f"{wanted.name}-{pack}" if pack else wanted.name)
    if target.exists():
        _check_same(target, wanted)
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target, progress=progress):
            if target.exists():  # another process has made it meanwhile
                _check_same(target, wanted)
            elif wanted.torrent:
                _pull_torrent(wanted, target, pack, progress)
            else:
                _pull_files(wanted, target, pack, progress)
    except OSError as error:
        raise WeightsError(f"cannot keep {wanted.name} as {target}: {_reason(error)}") from error
    return target


def _here(reference: str) -> Path | None:
    """A path that a user means by it, where there is one."""
    if catalogue().find(reference) is not None or reference.startswith(_LINKS):
        return None
    path = Path(reference).expanduser()
    here = bool(reference) and path.suffix != ".torrent" and _exists(path)
    if not here and reference.startswith((".", "/", "~")) and path.suffix != ".torrent":
        raise CierzoError(f"there is no {reference}")
    return path if here else None


def _exists(path: Path) -> bool:
    """Raises `CierzoError` for a name that is too long, or a folder that may not be read."""
    try:
        return path.exists()
    except OSError as error:
        raise CierzoError(f"{path}: {error.strerror}") from None


def _check_same(target: Path, wanted: Wanted) -> None:
    """Raises `CierzoError` when what has this name in the store is something else than what is wanted."""
    origin = origin_of(target)
    if origin is None:
        return
    other = origin.source != wanted.source
    other = other or wanted.revision not in (None, origin.asked, origin.revision)
    other = other or bool(wanted.sha256 and f"sha256:{wanted.sha256}" not in (origin.hashes or {}).values())
    if other:
        revision = f"@{origin.revision}" if origin.revision else ""
        raise CierzoError(
            f"{target.name} is in the store already, from {origin.source}{revision}: to have the other one, remove it "
            f"first (`cierzo rm {target.name}`)"
        )


def _wanted(reference: str, source: str | None) -> Wanted:
    try:
        return _understood(reference, source)
    except ValueError as error:  # of addresses
        raise CierzoError(f"{reference}: not an address ({error})") from None


def _understood(reference: str, source: str | None) -> Wanted:
    entry = catalogue().find(reference)
    if entry is not None:
        chosen = source or entry.sources[0]
        if chosen not in entry.sources:
            raise CierzoError(f"{entry.name} comes from {' or '.join(entry.sources)}, not from {chosen}")
        if chosen == "magnet":
            return Wanted(entry.name, entry, torrent=entry.magnet)
        if chosen == "hub":
            return Wanted(entry.name, entry, repo=entry.hub, revision=entry.revision)
        return Wanted(entry.name, entry)
    if source is not None:
        raise CierzoError(f"--source chooses between the sources of a name in the catalogue, and {reference} is none")
    if reference.startswith("magnet:"):
        name = parse_qs(urlsplit(reference).query).get("dn", ["torrent"])[0]
        return Wanted(_not_ours(_safe(name)), torrent=reference)
    if reference.endswith(".torrent") and Path(reference).is_file():
        return Wanted(_not_ours(_safe(Path(reference).stem)), torrent=reference)
    if reference.startswith(_LINKS):
        url, _, fragment = reference.partition("#")
        filename = PurePosixPath(unquote(urlsplit(url).path)).name
        if not filename.endswith(".gguf"):
            raise CierzoError(
                f"{reference}: an address must be that of a .gguf file: name a hub repository, or a magnet"
            )
        given = parse_qs(fragment).get("sha256", [None])[0]
        if fragment and not re.fullmatch("[0-9a-fA-F]{64}", given or ""):
            raise CierzoError(f"{reference}: after # belongs sha256= and 64 hexadecimal digits")
        return Wanted(
            _not_ours(_safe(filename.removesuffix(".gguf"))), url=url, sha256=given.lower() if given else None
        )
    if found := _REPOSITORY.fullmatch(reference):
        name = found["repo"] + (f"/{PurePosixPath(found['file']).stem}" if found["file"] else "")
        return Wanted(_safe(name), repo=found["repo"], revision=found["revision"], file=found["file"])
    raise CierzoError(
        f"{reference!r} is no model that can be fetched: give a name that `cierzo ls --all` shows, owner/name on the "
        "hub, an address of a GGUF file, a magnet link, or a path"
    )


def _not_ours(name: str) -> str:
    """A name that nobody takes for one of the catalogue, whatever an address or a torrent calls itself."""
    plain = re.sub("-(q4t|q4|q8)$", "", name)
    return f"{name}-of-others" if catalogue().find(plain) else name


def _safe(name: str) -> str:
    """A name for a folder of the store."""
    return re.sub(r"[^\w.-]+", "--", name).lstrip(".-") or "model"


def _announce(
    wanted: Wanted, size: str, licence: str | None, target: Path, pack: str | None, *, progress: bool
) -> None:
    if progress:
        packed = f", packed into {pack} on the way" if pack else ""
        print(
            f"fetching {wanted.name} ({size}, {licence or 'licence unknown'}{packed}) into {target.parent}",
            file=sys.stderr,
        )


def _reason(error: OSError) -> str:
    return f"{error.strerror}; set CIERZO_HOME to a folder that can be written and has room"


def _pull_file(entry: Entry, *, progress: bool) -> Path:
    assert entry.index is not None
    target = models_folder() / entry.index.filename
    if _complete(target, entry):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target, progress=progress):
            if not _complete(target, entry):
                wanted = Wanted(entry.name, entry)
                _announce(wanted, size_text(entry.size), entry.licence, target, None, progress=progress)
                check_space(target.parent, 2 * entry.size, entry.name)
                fetch_from_index(entry.index, target, progress=progress)
    except OSError as error:
        raise WeightsError(f"cannot keep {entry.name} as {target}: {_reason(error)}") from error
    return target


def _pull_files(wanted: Wanted, target: Path, pack: str | None, progress: bool) -> None:
    """A hub's files, or one of an address."""
    if wanted.repo:
        found = snapshot(wanted.repo, wanted.revision, wanted.file)
        files, licence, commit = found.files, wanted.licence or found.licence, found.commit
    else:
        assert wanted.url is not None
        checksum = f"sha256:{wanted.sha256}" if wanted.sha256 else None
        files = [RemoteFile(wanted.url, f"{wanted.name}.gguf", None, checksum)]
        licence, commit = None, None
    weights = [file for file in files if file.name.endswith(_WEIGHTS)]
    partial = begin(target, repr([wanted.source, pack, [(file.name, file.checksum) for file in weights]]))
    for file in files:
        if file not in weights:  # of another commit, perhaps
            (partial / file.name).unlink(missing_ok=True)
    total = sum(file.size or 0 for file in files)
    _announce(wanted, size_text(total) if total else "of unknown size", licence, target, pack, progress=progress)
    hashes: dict[str, str] = {}

    def fetch(file: RemoteFile, report: Callable[[int], None]) -> None:
        try:
            hashes[file.name] = fetch_file(file, partial, report)
        except DeniedError as error:
            raise denied(wanted.repo) if wanted.repo else error from error

    if pack:
        from cierzo.weights.pack_stream import pack_while_fetching

        pack_while_fetching(files, partial, pack, fetch, name=wanted.name, progress=progress)
    else:
        here = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
        check_space(partial, max(0, total - here), wanted.name)
        with progress_bar(wanted.name, wanted=progress) as report:
            done = 0
            for file in files:
                before = done
                fetch(file, lambda n, before=before: report(before + n, total))  # type: ignore[misc]
                done += file.size or 0
    for name, checksum in hashes.items():
        if next(file for file in files if file.name == name).checksum is None and progress:
            print(f"note: nothing to check {name} against: {checksum.replace(':', ' ')}", file=sys.stderr)
    Origin(wanted.source, licence, commit, pack, hashes, wanted.revision).write(partial)
    complete(partial, target)


def _pull_torrent(wanted: Wanted, target: Path, pack: str | None, progress: bool) -> None:
    assert wanted.torrent is not None
    partial = begin(target, repr([wanted.torrent, pack]))
    size = size_text(wanted.entry.size) if wanted.entry else "a torrent"
    _announce(wanted, size, wanted.licence, target, pack, progress=progress)
    with progress_bar(wanted.name, wanted=progress) as report:
        root = fetch_torrent(wanted.torrent, partial, report)
    origin = Origin(wanted.source, wanted.licence, None, pack)
    if pack:
        from cierzo.weights.packed import quantize_model

        with progress_bar(f"packing {wanted.name}", wanted=progress, unit="weights") as report:
            quantize_model(root, partial / "packed", format=pack, progress=report)
        root = partial / "packed"
    if root.is_file():
        origin.write(partial)
        complete(partial, target)
        return
    origin.write(root)
    complete(root, target)
    shutil.rmtree(partial)


def remove(name: str) -> int:
    """Delete a model of the store, or what is there of one; returns the bytes that this frees."""
    entry = catalogue().find(name)
    names = {name, entry.name, Path(entry.index.filename).stem if entry.index else ""} if entry else {name, _safe(name)}
    chosen = [stored for stored in stored_models() if stored.name in names]
    if not chosen:  # what `chat NAME` would run
        packed = {f"{each}{form}" for each in names for form in _PACKED}
        chosen = [stored for stored in stored_models() if stored.name in packed]
    if not chosen:
        raise CierzoError(f"there is no model {name!r} in {models_folder()}: `cierzo ls` shows what is there")
    for stored in chosen:
        with locked(stored.path if stored.whole else models_folder() / stored.name, progress=True):
            stored.remove()
    return sum(stored.size for stored in chosen)
