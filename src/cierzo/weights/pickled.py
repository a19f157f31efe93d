"""Tensors of a `torch.save` file, without running what the pickle in it asks for.

Such a file is a ZIP archive of uncompressed records: `data.pkl` says which tensors there are and `data/<key>` holds
their numbers. A pickle is a program, so only the few instructions that a dictionary of tensors needs are let through,
and every name that it calls is answered from the table here; `torch.load(weights_only=True)` allows more, such as
tensors larger than what is stored and keys that take for ever to hash.
"""

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cierzo.errors import WeightsError
from cierzo.weights.source import check_tensors, one_line, shown

_MOST_PICKLE = 4 * 2**20
"""Bytes of `data.pkl`, some 200 a tensor: room for 20,000 tensors."""

_MOST_DIMENSIONS = 8

_QUOTABLE = {"GLOBAL", "STACK_GLOBAL", "BINUNICODE", "SHORT_BINUNICODE", "EMPTY_DICT", "EMPTY_LIST", "REDUCE"}
"""What may be used again from the memo. Not tuples: a tuple of a tuple of ... twice each takes for ever to hash."""
_MEMO_PUT, _MEMO_GET = {"BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"BINGET", "LONG_BINGET"}
_ALLOWED = _QUOTABLE | _MEMO_PUT | _MEMO_GET | {
    "PROTO", "FRAME", "MARK", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD",
    "BINPERSID",
}  # fmt: skip

_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class _Stored(NamedTuple):
    """A tensor before it is looked for: type and record, then offset, shape and strides in elements."""

    dtype: torch.dtype
    key: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Every tensor of a `torch.save` file, as views of the mapped file. Raises `WeightsError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            stored = _Unpickler(path, _program(path, archive)).load()
            records = {i.filename.partition("/")[2]: i for i in archive.infolist()}
        data = np.asarray(np.memmap(path, np.uint8, mode="c"))  # copy on write, as torch has no read-only tensors
        if not isinstance(stored, dict) or not all(
            isinstance(name, str) and isinstance(tensor, _Stored) for name, tensor in stored.items()
        ):
            raise WeightsError(f"{path}: does not hold a dictionary of tensors: is it a model's weights?")
        tensors = {name: _view(path, name, tensor, records, data) for name, tensor in stored.items()}
    except WeightsError:
        raise
    except Exception as error:  # zipfile and pickle raise many kinds for bytes that are none of theirs
        raise WeightsError(f"{path}: not a whole file of tensors ({one_line(error)}): fetch it again") from error
    # Twice, as an embedding may be the output too.
    if sum(tensor.nbytes for tensor in tensors.values()) > 2 * len(data):
        raise WeightsError(f"{path}: declares more numbers than its {len(data)} bytes hold: fetch it again")
    check_tensors(path, tensors)
    return tensors


def _program(path: Path, archive: zipfile.ZipFile) -> bytes:
    """The archive's `data.pkl`, if it holds nothing but what a dictionary of tensors needs."""
    info = next((i for i in archive.infolist() if i.filename.partition("/")[2] == "data.pkl"), None)
    if info is None:
        raise WeightsError(f"{path}: no data.pkl in it: is it a model's weights, written by torch.save?")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > _MOST_PICKLE:
        raise WeightsError(f"{path}: data.pkl is compressed or larger than {_MOST_PICKLE} bytes: save it again")
    program = archive.read(info)
    last, memo = "", list[str]()
    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name not in _ALLOWED:
            raise WeightsError(f"{path}: the pickle asks for {name}, which no weights need; code in it is never run")
        if name in _MEMO_PUT:
            # In order, as every pickler writes: Python makes room up to the number that is given.
            if argument not in (len(memo), None):
                raise WeightsError(f"{path}: the pickle's memo jumps to {argument}: fetch the file again")
            memo.append(last)
        if name in _MEMO_GET:
            name = memo[argument] if isinstance(argument, int) and argument < len(memo) else ""
            if name not in _QUOTABLE:
                raise WeightsError(f"{path}: the pickle refers to what is no name and no tensor: fetch the file again")
        last = name
    return program


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path, program: bytes) -> None:
        super().__init__(io.BytesIO(program))
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            # New objects each time: a pickle may set attributes of what it gets.
            ("torch._utils", "_rebuild_tensor_v2"): partial(_rebuilt),
            ("torch._utils", "_rebuild_parameter"): partial(_parameter),
        }
        if (module, name) not in known:
            raise WeightsError(
                f"{self._path}: the pickle asks for {shown(f'{module}.{name}')}; code in a pickle is never run, so "
                "take the model as safetensors"
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, str]:
        _, dtype, key, *_ = pid
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise ValueError("a storage without type or name")
        return dtype, key


def _rebuilt(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Stored:
    dtype, key = storage
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= _MOST_DIMENSIONS):
        raise ValueError("a tensor without shape and strides")
    numbers = [offset, *shape, *strides]
    if not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError("a tensor's shape is no list of whole numbers")
    return _Stored(dtype, key, offset, shape, strides)


def _parameter(data: Any, *_: Any) -> _Stored:
    if not isinstance(data, _Stored):  # whatever it were, the pickle could use it again
        raise ValueError("a parameter that is no tensor")
    return data


def _view(
    path: Path, name: str, tensor: _Stored, records: dict[str, zipfile.ZipInfo], data: np.ndarray[Any, Any]
) -> Tensor:
    """The stored tensor, over the mapped file [bytes]."""
    record = records.get(f"data/{tensor.key}")
    if record is None or record.compress_type != zipfile.ZIP_STORED:
        raise WeightsError(f"{path}: tensor {name!r} has no uncompressed record {tensor.key!r}: fetch the file again")
    # Names and extra fields of an archive's local headers may be longer than those in its directory.
    name_size, extra_size = struct.unpack("<HH", data[record.header_offset + 26 :][:4].tobytes())
    start = record.header_offset + 30 + name_size + extra_size
    size = tensor.dtype.itemsize
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    values = (record.file_size // size) if start + record.file_size <= len(data) else 0
    if last >= values or math.prod(tensor.shape) > values:
        raise WeightsError(
            f"{path}: tensor {name!r} is {shown(list(tensor.shape))}, more than its {record.file_size} bytes: "
            "fetch the file again"
        )
    flat = torch.from_numpy(data[start : start + values * size]).view(tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.strides, tensor.offset)
