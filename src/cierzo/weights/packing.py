"""Writing the packed format: every tensor has its place before the first is there, so work can stop and go on.

The folder has no name that could be loaded until it is whole (`store.complete`). A journal beside the file names the
tensors that are on the disk; it begins with the layout of the file, so that work on another layout begins anew.
"""

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cierzo.model import ModelConfig
from cierzo.ops import Format, packed_shape

FILE = "packed.safetensors"
VERSION = "1"
_JOURNAL = "packed.journal"
_ALIGNMENT = 64


class PackedWriter:
    """The file `packed.safetensors` in `folder`, written tensor by tensor.

    Args:
        folder: of a model that is not whole yet.
        config, shapes: of the model, every parameter's.
        formats: of the matrices that are packed; all other tensors are float32.
    """

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        shapes: Mapping[str, tuple[int, ...]],
        formats: Mapping[str, Format],
    ) -> None:
        header, self._places, self.size = _layout(config, shapes, formats)
        self.formats = formats
        plan = hashlib.sha256(header).hexdigest()
        file, journal = folder / FILE, folder / _JOURNAL
        here = file.is_file() and file.stat().st_size == self.size
        self.done = _journalled(journal, plan) & self._places.keys() if here else set()
        if not self.done:
            with file.open("wb") as out:
                out.write(header)
                out.truncate(self.size)
        journal.write_text("".join(f"{line}\n" for line in (plan, *self.done)))  # without a line that was cut off
        self._file = file.open("r+b")
        self._journal = journal.open("a")

    def check_space(self) -> None:
        """Raises `OSError` when the disk has no room for what is still to be written: the file has holes so far."""
        taken = os.fstat(self._file.fileno()).st_blocks * 512
        if self.size - taken > shutil.disk_usage(Path(self._file.name).parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, name: str, data: Tensor) -> None:
        """Put a tensor in its place: a packed matrix's bytes, or floats."""
        stored = data if name in self.formats else data.float()
        start, size = self._places[name]
        raw = stored.contiguous().view(-1).view(torch.uint8).numpy().data
        if raw.nbytes != size:
            raise ValueError(f"{name} takes {raw.nbytes} bytes, and its place has {size}")
        self._file.seek(start)
        self._file.write(raw)
        self._file.flush()
        os.fsync(self._file.fileno())
        print(name, file=self._journal, flush=True)
        os.fsync(self._journal.fileno())  # before what it was made of may be given up
        self.done.add(name)

    def finish(self) -> None:
        """Every tensor is there: the journal goes."""
        assert self.done == set(self._places)
        os.fsync(self._file.fileno())
        self.close()
        Path(self._journal.name).unlink()

    def close(self) -> None:
        self._file.close()
        self._journal.close()


def packed_size(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], formats: Mapping[str, Format]) -> int:
    """Bytes of the file."""
    return _layout(config, shapes, formats)[2]


def _journalled(journal: Path, plan: str) -> set[str]:
    try:
        first, *names = journal.read_text().split("\n")
    except OSError:
        return set()
    return set(names[:-1]) if first == plan else set()  # the last one is empty, or cut off


def _layout(
    config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], formats: Mapping[str, Format]
) -> tuple[bytes, dict[str, tuple[int, int]], int]:
    """What a safetensors file begins with, every tensor's place (start, size), and the size of the file."""
    entries: dict[str, dict[str, Any]] = {}
    end = 0
    # Packed ones first: their lengths are multiples of 64 bytes, so each begins at one.
    for name, shape, kind, size in _stored(shapes, formats):
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    metadata = {"cierzo": VERSION, "config": json.dumps(asdict(config)), "shapes": json.dumps(shapes)}
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    places = {
        name: (len(header) + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in entries.items()
    }
    return header, places, len(header) + end


def _stored(
    shapes: Mapping[str, tuple[int, ...]], formats: Mapping[str, Format]
) -> Iterator[tuple[str, tuple[int, ...], str, int]]:
    for name, format in formats.items():
        packed = packed_shape(format, *shapes[name])
        yield name, packed, "U8", math.prod(packed)
    for name, shape in shapes.items():
        if name not in formats:
            yield name, shape, "F32", 4 * math.prod(shape)
