"""The models that are known by name: `catalogue.toml`."""

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class IndexFile:
    """A model file inside a wheel of the Python package index: the package is never installed or imported."""

    requirement: str
    member: str
    sha256: str

    @property
    def filename(self) -> str:
        return self.member.rpartition("/")[2]


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue, with the places that it can be had from."""

    name: str
    shape: str
    """The name of its dimensions in `cierzo.model.PRESETS`."""
    licence: str
    size: int
    """Bytes that are fetched, about."""
    hub: str | None = None
    revision: str | None = None
    gated: str | None = None
    """Who must grant access first."""
    magnet: str | None = None
    index: IndexFile | None = None

    @property
    def sources(self) -> list[str]:
        """Where it can be had, the first choice first."""
        return [name for name in ("index", "hub", "magnet") if getattr(self, name)]


@dataclass(frozen=True)
class Catalogue:
    default: str
    entries: dict[str, Entry]
    aliases: dict[str, str]

    def find(self, name: str) -> Entry | None:
        return self.entries.get(self.aliases.get(name, name))


_catalogue: Catalogue | None = None


def catalogue() -> Catalogue:
    global _catalogue
    _catalogue = _catalogue or _read()
    return _catalogue


def _read() -> Catalogue:
    values: dict[str, Any] = tomllib.loads(files("cierzo.weights").joinpath("catalogue.toml").read_text("utf-8"))
    entries = {}
    for name, entry in values["models"].items():
        index = entry.pop("index", None)
        entries[name] = Entry(name, **entry, index=IndexFile(**index) if index else None)
    return Catalogue(values["default"], entries, values["aliases"])
