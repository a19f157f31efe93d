"""The part of a GGUF file in front of the weights: metadata, and where the tensors lie.

It is read here and not with `gguf.GGUFReader`, which makes several array objects of every string and needs seconds
for a vocabulary. Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cierzo.errors import WeightsError
from cierzo.weights.source import shown, whole

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_SCALARS = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS


class StoredTensor(NamedTuple):
    """Where a tensor lies: `shape` outermost first, ggml's type number, and bytes from the start of the data."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class Header(NamedTuple):
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]
    data: int  # where the tensors' data starts in the file


def read_metadata(path: Path) -> dict[str, Any]:
    """The key-value part of a GGUF file as plain Python: numbers, booleans, strings and lists of them."""
    return read_header(path).metadata


def read_header(path: Path) -> Header:
    """Everything in front of the weights. Raises `WeightsError` when the file is not a GGUF file, or ends inside."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _HeaderReader(path, data).header()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    except (struct.error, ValueError) as error:  # beyond the end; mmap's ValueError: no bytes at all
        raise WeightsError(f"{path}: the file ends inside its header: fetch it again") from error


class _TooShortError(ValueError):
    """The file ends before what its header declares."""


class _HeaderReader:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def header(self) -> Header:
        if self.data[:4] != b"GGUF":
            raise WeightsError(f"{self.path}: not a GGUF file: it does not start with 'GGUF'")
        self.at = 4
        version = self.number(_U32)
        if version not in (2, 3):
            raise WeightsError(
                f"{self.path}: GGUF version {version} (or byte order) is not supported: only 2 and 3 are"
            )
        n_tensors, n_values = self.number(_U64), self.number(_U64)
        metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = self.strings(1, "a key")[0]
            if key in metadata:
                raise WeightsError(f"{self.path}: {shown(key)} is there twice: fetch the file again")
            metadata[key] = self.value(self.number(_U32), key)
        alignment = whole(self.path, {"general.alignment": 32} | metadata, "general.alignment")
        if alignment % 8:
            raise WeightsError(f"{self.path}: 'general.alignment' is {alignment}, not a multiple of 8")
        tensors: dict[str, StoredTensor] = {}
        for _ in range(n_tensors):
            name = self.strings(1, "a tensor's name")[0]
            if name in tensors:
                raise WeightsError(f"{self.path}: tensor {name!r} is there twice: fetch the file again")
            tensors[name] = self.tensor(name, alignment)
        return Header(metadata, tensors, -(-self.at // alignment) * alignment)

    def tensor(self, name: str, alignment: int) -> StoredTensor:
        n_dims = self.number(_U32)
        if not 1 <= n_dims <= _MOST_DIMENSIONS:
            raise WeightsError(f"{self.path}: tensor {name!r} has {n_dims} dimensions, not 1 to {_MOST_DIMENSIONS}")
        shape = tuple(reversed([self.number(_U64) for _ in range(n_dims)]))
        if 0 in shape:
            raise WeightsError(f"{self.path}: tensor {name!r} is {list(shape)}, which is empty: fetch the file again")
        kind, offset = self.number(_U32), self.number(_U64)
        if offset % alignment:
            raise WeightsError(
                f"{self.path}: tensor {name!r} is at {offset}, which general.alignment {alignment} does not divide: "
                "fetch the file again"
            )
        return StoredTensor(shape, kind, offset)

    def number(self, kind: struct.Struct) -> int:
        (value,) = kind.unpack_from(self.data, self.at)
        self.at += kind.size
        return int(value)

    def strings(self, count: int, what: str) -> list[str]:
        values, data, at, end, size_at = [], self.data, self.at, len(self.data), _U64.unpack_from
        try:
            for _ in range(count):
                start = at + 8
                at = start + size_at(data, at)[0]
                if at > end:
                    raise _TooShortError
                values.append(data[start:at].decode())
        except UnicodeDecodeError:
            raise WeightsError(f"{self.path}: {shown(what)} holds text that is not UTF-8: fetch it again") from None
        self.at = at
        return values

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.strings(1, key)[0]
        if kind == _ARRAY:
            kind, count = self.number(_U32), self.number(_U64)
            return self.strings(count, key) if kind == _STRING else self.numbers(kind, count, key)
        return self.numbers(kind, 1, key)[0]

    def numbers(self, kind: int, count: int, key: str) -> list[Any]:
        if kind not in _SCALARS:
            raise WeightsError(f"{self.path}: {shown(key)} has the unknown type {kind}: fetch the file again")
        dtype = np.dtype(_SCALARS[kind])
        end = self.at + count * dtype.itemsize
        if end > len(self.data):
            raise _TooShortError
        values: list[Any] = np.frombuffer(self.data[self.at : end], dtype).tolist()
        self.at = end
        return values
