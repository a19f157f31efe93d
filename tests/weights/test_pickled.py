"""`torch.save` files: what is read of them, and pickles that ask for more than tensors."""

import io
import json
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cierzo.errors import WeightsError
from cierzo.weights.pickled import read_pickle


def saved(folder: Path, tensors: object) -> Path:
    path = folder / "consolidated.00.pth"
    torch.save(tensors, path)
    return path


def with_program(path: Path, program: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """The file with another pickle in it."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, program if name.endswith("/data.pkl") else content)
    return path


def test_tensors_are_those_of_torch_load(tmp_path: Path) -> None:
    base = torch.randn(6, 4)
    linear = torch.nn.Linear(3, 2)
    tensors = linear.state_dict() | {
        "parameter": torch.nn.Parameter(base.clone()),
        "transposed": base.t(),
        "row": base[3],
        "column": base[:, 1],
        "same": base,
        "half": base.half(),
        "brain": base.bfloat16(),
        "number": torch.tensor(1.5),
    }
    path = saved(tmp_path, tensors)
    expected = torch.load(path, weights_only=True)
    got = read_pickle(path)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name
    state = tmp_path / "state.pth"  # with PyTorch's own attributes on the dictionary
    torch.save(linear.state_dict(), state)
    assert torch.equal(read_pickle(state)["weight"], linear.weight)


class Calls:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch ran",), r"posix\.system"),
        (eval, ("open('ran', 'w')",), r"__builtin__\.eval"),
        (bytearray, (10**12,), r"bytearray"),
        (getattr, ("", "join"), r"getattr"),
    ],
)
def test_code_is_not_run_and_named(
    function: Callable[..., object], arguments: Any, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=rf"consolidated\.00\.pth: the pickle asks for .*{named}.*never run"):
        read_pickle(saved(tmp_path, {"norm.weight": Calls(function, *arguments)}))
    assert not (tmp_path / "ran").exists()


PROGRAMS = {
    # A tuple of the same tuple twice, and so on: a key that takes 2^60 steps to hash.
    "hash": (
        b"\x80\x02}(X\x01\x00\x00\x00aq\x00"
        + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60))
        + b"K\x01u.",
        "refers to what is no name",
    ),
    # The same by a function that gives back what it gets.
    "parameter": (
        b"\x80\x02}(X\1\0\0\0aq\0"
        + b"".join(b"ctorch._utils\n_rebuild_parameter\nh%ch%c\x86\x85Rq%c" % (n, n, n + 1) for n in range(60))
        + b"K\x01u.",
        "a parameter that is no tensor",
    ),
    "memo": (b"\x80\x02}r\xff\xff\xff\x7f.", "memo jumps to 2147483647"),
    "opcode": (b"\x80\x02(ios\nsystem\n.", "asks for INST"),
    "long": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "not a whole file of tensors"),
    "text": (b"\x80\x04\x8d" + b"\xff" * 8 + b".", "asks for BINUNICODE8|not a whole"),
    "number": (pickle.dumps(3, protocol=2), "does not hold a dictionary of tensors"),
    "list": (pickle.dumps([{}], protocol=2), "does not hold a dictionary of tensors"),
    "empty": (b"", "not a whole file of tensors"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_absurd_pickles_are_refused_at_once(name: str, tmp_path: Path) -> None:
    program, says = PROGRAMS[name]
    path = with_program(saved(tmp_path, {"norm.weight": torch.ones(2)}), program)
    started = time.monotonic()
    with pytest.raises(WeightsError, match=says) as refusal:
        read_pickle(path)
    assert time.monotonic() - started < 2
    assert str(path) in str(refusal.value)


def test_archives_that_grow_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"norm.weight": torch.ones(2)})
    with_program(path, b"\x80\x02}" + b"0" * 10**8 + b".", zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**6
    with pytest.raises(WeightsError, match=r"data\.pkl is compressed or larger"):
        read_pickle(path)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"norm.weight": torch.zeros(1).expand(10**6, 10**6)}, "tensor 'norm.weight' is .*, more than its 4 bytes"),
        ({"norm.weight": torch.zeros(0, 5)}, "tensor 'norm.weight' is .*empty"),
        ({f"{n}": base for base in [torch.zeros(10_000)] for n in range(9)}, "more numbers than its"),
        ({"norm.weight": torch.zeros(3).to_sparse()}, "asks for.*never run"),
        ({"norm.weight": torch.zeros(3, dtype=torch.float64)}, "'norm.weight' is float64"),
        ({7: torch.zeros(3)}, "does not hold a dictionary of tensors"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_tensors_that_the_file_does_not_hold(tensors: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=says):
        read_pickle(saved(tmp_path, tensors))


def test_a_record_that_is_not_there(tmp_path: Path) -> None:
    path = saved(tmp_path, {"norm.weight": torch.ones(2)})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"00/data/0", b"00/data/9"))
    with pytest.raises(WeightsError, match=r"tensor 'norm\.weight' has no uncompressed record '0'"):
        read_pickle(path)


@pytest.mark.parametrize("content", [b"", b"PK", json.dumps({}).encode(), pickle.dumps({})])
def test_what_is_no_archive(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "consolidated.00.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a whole file of tensors"):
        read_pickle(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("something/else", io.BytesIO().getvalue())
    with pytest.raises(WeightsError, match=r"no data\.pkl"):
        read_pickle(path)
