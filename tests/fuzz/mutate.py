"""Small lies in a valid file: bytes, lengths, and the values of JSON."""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

Mutator = Callable[[Random, bytes], bytes]

NUMBERS = [0, 1, 2, 7, 31, 255, 2**16, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 1]
VALUES: list[Any] = [
    *NUMBERS, None, True, False, -1, 10**12, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "abc", "\ud800",
    "a" * 500, "../x", "\x00", [], {}, [1], ["a"], {"a": 1}, [[[[[]]]]], "<s>", "</s>",
]  # fmt: skip


def in_bytes(rng: Random, data: bytes) -> bytes:
    """Other bytes or lengths, mostly near the beginning, where headers are; or a part less, or twice."""
    lied = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        if not lied:
            break
        at = rng.randrange(rng.choice([min(64, len(lied)), min(2048, len(lied)), len(lied)]))
        kind = rng.randrange(7)
        if kind == 0:
            lied[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            lied[at] = rng.randrange(256)
        elif kind == 2:
            lied[at : at + 8] = struct.pack("<Q", rng.choice(NUMBERS))
        elif kind == 3:
            lied[at : at + 4] = struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)
        elif kind == 4:
            del lied[at:]
        elif kind == 5:
            del lied[at : at + rng.randrange(1, 64)]
        else:
            lied[at:at] = lied[at : at + rng.randrange(1, 256)]
    return bytes(lied)


def in_json(rng: Random, data: bytes) -> bytes:
    """Other values, missing keys or entries, keys twice, absurd nesting; sometimes plain bytes."""
    if rng.random() < 0.1:
        return in_bytes(rng, data)
    if rng.random() < 0.05:
        return data[: rng.randrange(len(data))] + rng.choice([b"[", b'{"a":']) * 100_000
    value = json.loads(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        value = _with_lie(rng, value)
    text = json.dumps(value)
    if rng.random() < 0.05 and isinstance(value, dict) and value:
        key = rng.choice(list(value))
        text = f"{{{json.dumps(key)}: {json.dumps(rng.choice(VALUES))}, {text[1:]}"
    return text.encode()


def _with_lie(rng: Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if rng.random() < 0.05:
            return {(key + rng.choice("x.0") if k == key else k): v for k, v in value.items()}
        return value | {key: _with_lie(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        kind = rng.randrange(6)
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return value[:at] + [value[at]] * rng.choice([2, 30]) + value[at:]
        return [_with_lie(rng, item) if n == at else item for n, item in enumerate(value)]
    return rng.choice(VALUES)


def in_safetensors(rng: Random, data: bytes) -> bytes:
    """Lies in the JSON header, whose length stays true; or anywhere."""
    if rng.random() < 0.4:
        return in_bytes(rng, data)
    (size,) = struct.unpack_from("<Q", data)
    header = in_json(rng, data[8 : 8 + size])
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def in_archive(rng: Random, data: bytes) -> bytes:
    """Lies in one record of a `torch.save` file, or its compression; or anywhere."""
    if rng.random() < 0.3:
        return in_bytes(rng, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    chosen = next(iter(records)) if rng.random() < 0.8 else rng.choice(list(records))  # data.pkl is the first
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in records.items():
            if name == chosen and rng.random() < 0.05:
                archive.writestr(name, content + bytes(10**7), compress_type=zipfile.ZIP_DEFLATED)
            else:
                archive.writestr(name, in_bytes(rng, content) if name == chosen else content)
    return out.getvalue()
