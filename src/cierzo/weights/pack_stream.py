"""Packing a model while it is fetched: each shard is packed when it is there and then given up.

A shard is checked before anything of it is packed. Its tensors are packed one by one, and what was read of it is given
back to the disk at once, so that the disk holds no more than the largest shard and the packed model.
"""

import ctypes
import ctypes.util
import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial as bound
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from cierzo.errors import WeightsError
from cierzo.progress import progress_bar
from cierzo.weights.consolidated import read_params
from cierzo.weights.download import RemoteFile
from cierzo.weights.huggingface import interleave, read_config, views
from cierzo.weights.load import check_shapes, model_shapes
from cierzo.weights.packed import EMBEDDINGS, packed_formats, write_rounded
from cierzo.weights.packing import FILE, PackedWriter, packed_size
from cierzo.weights.source import MappedTensors, assign, read_safetensors, untied
from cierzo.weights.store import check_space

_INDEX = "model.safetensors.index.json"
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h

Fetch = Callable[[RemoteFile, Callable[[int], None]], None]


def pack_while_fetching(
    files: list[RemoteFile], folder: Path, format: str, fetch: Fetch, *, name: str, progress: bool
) -> None:
    """Fetch `files` into `folder`, which then holds the packed model and no original weights.

    Raises `WeightsError` for weights that cannot be packed, besides what `fetch` raises.
    """
    shards = [file for file in files if file.name.endswith(".safetensors")]
    if not shards or any(file.name.endswith((".pth", ".gguf")) for file in files):
        raise WeightsError(
            f"{name} is not in safetensors files, which alone are packed while they are fetched: fetch it without "
            "--quantize, and pack it with `cierzo quantize` (GGUF files run as they are)"
        )
    total = sum(file.size or 0 for file in files)
    done = 0
    with progress_bar(name, wanted=progress) as report:

        def get(file: RemoteFile) -> None:
            fetch(file, lambda n: report(done + n, total))

        for file in files:
            if file not in shards:
                get(file)
                done += file.size or 0
        packer = _Packer(folder, consolidated=shards[0].name.startswith("consolidated"), format=format)
        try:
            packer.check_space(shards, name)
            for shard in shards:
                if not packer.has(shard.name):
                    get(shard)
                    packer.pack(shard.name)
                (folder / shard.name).unlink(missing_ok=True)
                done += shard.size or 0
            packer.finish()
        finally:
            packer.writer.close()


class _Packer:
    def __init__(self, folder: Path, *, consolidated: bool, format: str) -> None:
        self.folder, self.consolidated = folder, consolidated
        self.config = read_params(folder / "params.json") if consolidated else read_config(folder / "config.json")
        self.shapes = model_shapes(self.config)
        self.formats = packed_formats(self.shapes, format)
        self.writer = PackedWriter(folder, self.config, self.shapes, self.formats)
        self.packed_shards = folder / "packed.shards"
        self._tied: bytes | None = None
        self._resumed = bool(self.writer.done)
        if not self.writer.done:  # shards of work on another layout have holes
            self.packed_shards.unlink(missing_ok=True)
            for shard in folder.glob("*.safetensors"):
                if shard.name != FILE:
                    shard.unlink()

    def check_space(self, shards: list[RemoteFile], name: str) -> None:
        left = [shard.size or 0 for shard in shards if not self.has(shard.name)]
        here = sum(file.stat().st_blocks * 512 for file in self.folder.iterdir())
        wanted = packed_size(self.config, self.shapes, self.formats) + max(left, default=0)
        check_space(self.folder, max(0, wanted - here), name)

    def has(self, shard: str) -> bool:
        return shard in self._journal()

    def _journal(self) -> dict[str, dict[str, str]]:
        """The shards that are packed, each with its parameters and what their tensors were called there."""
        journal: dict[str, dict[str, str]] = {}
        for line in self.packed_shards.read_text().splitlines() if self.packed_shards.is_file() else []:
            shard, _, stored_as = line.partition("\t")
            with suppress(ValueError):  # a line that was cut off
                journal[shard] = json.loads(stored_as)
        return journal

    def pack(self, shard: str) -> None:
        """The tensors of a shard that is there; those that an earlier run packed are passed over.

        Raises:
            WeightsError: also for two tensors that are one parameter, in whichever shards.
        """
        path = self.folder / shard
        before = {ours: name for stored_as in self._journal().values() for ours, name in stored_as.items()}
        stored_as: dict[str, str] = {}
        stored = read_safetensors(path)
        places = _places(path)
        with path.open("r+b") as file:
            for name in list(stored):
                tensor = stored.pop(name)
                for ours, view in [(name, tensor)] if self.consolidated else views(path, name, tensor, self.config):
                    assign(before, ours, name, path)
                    stored_as[ours] = before[ours]
                    if ours in EMBEDDINGS and self.config.tied_embeddings:
                        self._check_tied(path, view)
                        if ours == "output.weight":
                            continue
                    if ours in self.writer.done:
                        continue
                    convert = (lambda _, t: t) if self.consolidated else bound(interleave, self.config.head_dim)
                    source = MappedTensors(path, self.config, {ours: view}, {ours: path}, convert)
                    if self.shapes.get(ours) != source.shapes[ours]:
                        check_shapes(source, {ours: self.shapes[ours]} if ours in self.shapes else {})
                    write_rounded(self.writer, source, ours)
                del tensor
                _give_back(file.fileno(), *places[name])
        with self.packed_shards.open("a") as journal:
            print(shard, json.dumps(stored_as), sep="\t", file=journal)

    def _check_tied(self, path: Path, embedding: Tensor) -> None:
        """Of embedding and output, whichever comes second must be the same; they may be in different shards.

        After a stop, what was read before may be a hole in its file, which cannot be compared.
        """
        if self._resumed:
            return
        digest = blake2b(embedding.contiguous().view(torch.uint8).numpy().data).digest()
        if self._tied not in (None, digest):
            raise untied(path)
        self._tied = digest

    def finish(self) -> None:
        missing = [name for name in self.shapes if name not in self.writer.done]
        if missing:
            raise WeightsError(
                f"{self.folder}: {len(missing)} of {len(self.shapes)} tensors are missing, {missing[0]!r} first: the "
                "repository is not whole, or its configuration is of another model"
            )
        self.writer.finish()
        self.packed_shards.unlink()
        (self.folder / _INDEX).unlink(missing_ok=True)


def _places(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor of a safetensors file lies, (start, size); the library has checked the header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: (8 + length + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
    }


def _give_back(descriptor: int, start: int, size: int) -> None:
    """Free a file's blocks but keep its length, where the system can (Linux); elsewhere they stay until the end."""
    library = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    if hasattr(library, "fallocate"):
        block = os.fstatvfs(descriptor).f_bsize
        first, last = -(-start // block) * block, (start + size) // block * block
        if last > first:
            library.fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(first), ctypes.c_int64(last - first))
