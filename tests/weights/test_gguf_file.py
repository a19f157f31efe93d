"""GGUF: the header against the gguf library's own reader, and files that are broken or of other models."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter

from cierzo.errors import WeightsError
from cierzo.model import ModelConfig, MoeConfig
from cierzo.weights import open_source, read_metadata
from support.checkpoints import random_weights, write_gguf

SMALL = ModelConfig(
    dim=32, n_layers=2, head_dim=16, hidden_dim=64, n_heads=2, n_kv_heads=1, vocab_size=40, max_seq_len=64,
    sliding_window=7, rope_theta=1e6,
)  # fmt: skip


def small(folder: Path, kind: GGMLQuantizationType = GGMLQuantizationType.F32) -> Path:
    return write_gguf(folder / "model.gguf", SMALL, random_weights(SMALL), kind)


def edited(folder: Path, **metadata: Any) -> Path:
    """A small model with llama's metadata added or replaced; `__` stands for a point."""
    path = small(folder)
    reader = gguf.GGUFReader(path)
    writer = GGUFWriter(folder / "edited.gguf", "llama")
    values = {key: read_metadata(path)[key] for key in reader.fields if key.startswith(("llama.", "split."))}
    values |= {key.replace("__", "."): value for key, value in metadata.items()}
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_string(key, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "edited.gguf"


def test_metadata_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "values.gguf"
    writer = GGUFWriter(path, "llama")
    written = {
        "bool": True, "float": 0.5, "text": "é\n", "ints": [-1, 2, 300], "floats": [0.25, -1.0],
        "texts": ["a", "", "ß∂"], "flags": [True, False],
    }  # fmt: skip
    writer.add_bool("bool", True)
    writer.add_float32("float", 0.5)
    writer.add_string("text", "é\n")
    for key in ("ints", "floats", "texts", "flags"):
        writer.add_array(key, written[key])  # type: ignore[arg-type]
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float64"):
        written[kind] = 100
        getattr(writer, f"add_{kind}")(kind, 100)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    metadata = read_metadata(path)
    assert {key: metadata[key] for key in written} == written
    assert {type(item) for key in ("ints", "flags") for item in metadata[key]} == {int, bool}
    assert metadata["general.architecture"] == "llama"


def test_configuration(tmp_path: Path) -> None:
    assert open_source(small(tmp_path)).config == SMALL
    config = open_source(edited(tmp_path, llama__attention__sliding_window=0, llama__rope__scaling__type="none")).config
    assert config.sliding_window is None
    assert open_source(edited(tmp_path, llama__attention__causal=True)).config == SMALL


@pytest.mark.parametrize("merged", [True, False])
def test_experts_together_and_apart(merged: bool, tmp_path: Path) -> None:
    values = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    config = ModelConfig(**values | {"moe": MoeConfig(3, 2)})
    weights = random_weights(config)
    path = write_gguf(tmp_path / "model.gguf", config, weights, merged_experts=merged)
    source = open_source(path)
    assert source.config == config
    assert source.shapes == {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name, tensor in weights.items():
        assert torch.equal(source.tensor(name), tensor), name


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (GGMLQuantizationType.F32, torch.float32),
        (GGMLQuantizationType.F16, torch.float16),
        (GGMLQuantizationType.BF16, torch.bfloat16),
        *(
            (kind, torch.float32)
            for kind in GGMLQuantizationType
            if kind.name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
        ),
    ],
)
def test_types(kind: GGMLQuantizationType, dtype: torch.dtype, tmp_path: Path) -> None:
    source = open_source(small(tmp_path, kind))
    assert source.dtype == dtype
    for name, tensor in random_weights(SMALL).items():
        expected = tensor
        if tensor.ndim == 2:
            expected = torch.from_numpy(gguf.dequantize(gguf.quantize(tensor.numpy(), kind), kind))
        assert torch.equal(source.tensor(name).float(), expected), name


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"general__architecture": "qwen2"}, "qwen2"),
        ({"llama__rope__scaling__type": "yarn"}, "yarn"),
        ({"llama__rope__scaling__factor": 4.0}, "rope.scaling.factor"),
        ({"llama__attention__causal": False}, "attention.causal"),
        ({"llama__attention__causal": 0}, "attention.causal"),
        ({"llama__rope__dimension_count": 8}, "rope.dimension_count"),
        ({"llama__attention__value_length": 8}, "attention.value_length"),
        ({"llama__attention__sliding_window_pattern": 4}, "sliding_window_pattern"),
        ({"llama__attention__head_count_kv": [1, 2]}, "n_kv_heads"),
        ({"llama__attention__head_count": [2, 2]}, "attention.head_count"),
        ({"llama__block_count": 0}, "block_count"),
        ({"llama__embedding_length": "32"}, "embedding_length"),
        ({"llama__expert_count": 4}, "expert_used_count"),
        ({"split__count": 3}, "3 parts"),
        ({"split__count": "x"}, "'x' parts"),
        ({"llama__rope__freq_base": "abc"}, "rope_theta"),
        ({"llama__rope__freq_base": float("nan")}, "rope_theta"),
        ({"llama__block_count": 2**32 - 1}, "block_count"),
        ({"llama__attention__sliding_window": [1]}, "sliding_window"),
        ({"llama__attention__key_length": "wide"}, "attention.key_length"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(metadata: dict[str, Any], named: str, tmp_path: Path) -> None:
    architecture = metadata.pop("general__architecture", None)
    path = edited(tmp_path, **metadata)
    if architecture:
        path.write_bytes(
            path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0" + architecture.encode(), 1)
        )
    with pytest.raises(WeightsError) as refusal:
        open_source(path)
    assert named in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["rope_freqs.weight", "rope_factors_long.weight"])
def test_tensors_that_change_the_rotation_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    weights = {"token_embd.weight": np.ones((40, 32), np.float32), name: np.ones(8, np.float32)}
    writer = GGUFWriter(path, "llama")
    for key, tensor in weights.items():
        writer.add_tensor(key, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match=name):
        open_source(path)


def test_a_file_that_ends_anywhere_is_refused(tmp_path: Path) -> None:
    path = small(tmp_path, GGMLQuantizationType.Q8_0)
    whole = path.read_bytes()
    for kept in (*range(0, 1500, 7), len(whole) // 2, len(whole) - 33):
        path.write_bytes(whole[:kept])
        with pytest.raises(WeightsError) as refusal:
            open_source(path)
        assert str(path) in str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"PK\x03\x04" + bytes(64), "not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(64), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(64), "byte order"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77), "'k'.*77"),
        (b"GGUF" + struct.pack("<IQQQ1sIQ1s", 3, 0, 1, 1, b"k", 8, 1, b"\xff"), "'k' holds text that is not UTF-8"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1), "'k'.* 9"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 2**62), "ends inside its header"),
    ],
)
def test_other_files_are_refused(content: bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=named):
        open_source(path)


@pytest.mark.parametrize(("kind", "named"), [(99, "99"), (int(GGMLQuantizationType.Q8_K), "15")])
def test_a_type_that_cannot_be_dequantised_is_named(kind: int, named: str, tmp_path: Path) -> None:
    path = small(tmp_path)
    name = b"blk.1.attn_q.weight"
    data = path.read_bytes()
    at = data.index(name) + len(name) + 4 + 16
    assert data[at : at + 4] == bytes(4)  # F32
    path.write_bytes(data[:at] + struct.pack("<I", kind) + data[at + 4 :])
    with pytest.raises(WeightsError, match=rf"blk\.1\.attn_q\.weight.*{named}"):
        open_source(path)


def header(*, values: bytes = b"", n_values: int = 0, tensors: bytes = b"", n_tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_values) + values + tensors


def value(key: bytes, kind: int, content: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + content


def entry(name: bytes, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
    return struct.pack("<Q", len(name)) + name + dims + struct.pack("<IQ", kind, offset)


ALIGNMENT = b"general.alignment"
LIES = {
    "2^60 values": (header(n_values=2**60), "ends inside its header"),
    "2^60 tensors": (header(n_tensors=2**60), "ends inside its header"),
    "a text of 2^63 bytes": (header(n_values=1, values=value(b"k", 8, struct.pack("<Q", 2**63))), "ends inside"),
    "2^60 texts": (header(n_values=1, values=value(b"k", 9, struct.pack("<IQ", 8, 2**60))), "ends inside"),
    "2^61 numbers": (header(n_values=1, values=value(b"k", 9, struct.pack("<IQ", 10, 2**61))), "ends inside"),
    "an array of arrays": (header(n_values=1, values=value(b"k", 9, struct.pack("<IQ", 9, 9))), "'k' has the unknown"),
    "a key twice": (header(n_values=2, values=value(b"k", 7, b"\1") * 2), "'k' is there twice"),
    "an escape in a key": (header(n_values=1, values=value(b"\x1b[2J\n", 99, b"")), r"'\\x1b\[2J\\n' has the unknown"),
    "a long key": (header(n_values=1, values=value(b"k" * 10**6, 99, b"")), "has the unknown type 99"),
    "alignment 0": (header(n_values=1, values=value(ALIGNMENT, 4, struct.pack("<I", 0))), "'general.alignment' must"),
    "alignment 7": (header(n_values=1, values=value(ALIGNMENT, 4, struct.pack("<I", 7))), "not a multiple of 8"),
    "alignment 2^31": (header(n_values=1, values=value(ALIGNMENT, 4, struct.pack("<I", 2**31))), "no model has more"),
    "alignment of text": (header(n_values=1, values=value(ALIGNMENT, 8, struct.pack("<Q", 0))), "must be a whole"),
    "2^32 - 1 dimensions": (
        header(n_tensors=1, tensors=struct.pack("<Q1sI", 1, b"t", 2**32 - 1)), "'t' has 4294967295 dimensions",
    ),
    "no dimensions": (header(n_tensors=1, tensors=entry(b"t", [])), "'t' has 0 dimensions"),
    "an empty dimension": (header(n_tensors=1, tensors=entry(b"t", [2**60, 0])), "'t' is .* empty"),
    "an odd offset": (header(n_tensors=1, tensors=entry(b"t", [4], offset=4)), "'t' is at 4, which"),
    "a tensor twice": (header(n_tensors=2, tensors=entry(b"t", [4]) * 2), "'t' is there twice"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie(lie: str, tmp_path: Path) -> None:
    content, says = LIES[lie]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=says) as refusal:
        open_source(path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 700


@pytest.mark.parametrize(
    ("shape", "offset", "says"),
    [
        (None, 0, "inside 'blk"),
        (None, 2**63 - 32, "ends at"),
        (None, 2**64 - 32, "ends at"),
        ([2**63, 2**63], None, "ends at"),
        ([2**40, 2**20], None, "ends at"),
    ],
)
def test_tensors_that_are_elsewhere(shape: list[int] | None, offset: int | None, says: str, tmp_path: Path) -> None:
    path = small(tmp_path)
    name = b"blk.1.attn_q.weight"
    data = bytearray(path.read_bytes())
    at = data.index(name) + len(name) + 4
    if shape:
        data[at : at + 16] = struct.pack("<QQ", *shape)
    if offset is not None:
        first = struct.unpack_from("<Q", data, data.index(b"blk.0.attn_norm.weight") + 22 + 4 + 8 + 4)[0]
        data[at + 20 : at + 28] = struct.pack("<Q", offset or first)
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=says) as refusal:
        open_source(path)
    assert "blk." in str(refusal.value)


def test_experts_that_the_configuration_does_not_say_are_not_taken_apart(tmp_path: Path) -> None:
    values = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    config = ModelConfig(**values | {"moe": MoeConfig(3, 2)})
    path = write_gguf(tmp_path / "model.gguf", config, random_weights(config))
    key = b"llama.expert_count"
    data = bytearray(path.read_bytes())
    at = data.index(key) + len(key) + 4
    data[at : at + 4] = struct.pack("<I", 2)
    path.write_bytes(data)
    assert "blk.0.ffn_gate_exps.weight" in open_source(path).shapes
