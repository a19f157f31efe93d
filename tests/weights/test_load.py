"""Which format a path is, and a checkpoint into a model."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import save_file

from cierzo.engine import Engine
from cierzo.errors import WeightsError
from cierzo.loading import Loaded, LoadOptions, weights_size
from cierzo.model import ModelConfig
from cierzo.weights import load_model, open_source
from cierzo.weights.load import all_finite
from support.checkpoints import huggingface_model, random_weights, write_consolidated, write_gguf
from support.logits import packed_logits
from support.models import ByteTokenizer

SMALL = ModelConfig(
    dim=16, n_layers=2, head_dim=8, hidden_dim=24, n_heads=2, n_kv_heads=1, vocab_size=32, max_seq_len=64
)


def test_the_model_is_ready_to_run(tmp_path: Path) -> None:
    weights = random_weights(SMALL)
    heard: list[tuple[int, int]] = []
    model = load_model(
        write_consolidated(tmp_path, SMALL, weights), progress=lambda done, total: heard.append((done, total))
    )
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.state_dict().keys() == weights.keys()
    assert heard[-1] == (SMALL.n_params, SMALL.n_params)
    assert len(heard) == len(weights)
    assert heard == sorted(heard)


@pytest.mark.parametrize(("kind", "dtype"), [("Q8_0", torch.bfloat16), ("F32", torch.float32)])
def test_few_bits_become_bfloat16_where_no_kernels_take_them(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config = replace(SMALL, dim=32, hidden_dim=32, head_dim=16)
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config), GGMLQuantizationType[kind])
    assert {p.dtype for p in load_model(path, packed=True, device="meta").parameters()} == {dtype}


@pytest.mark.parametrize("form", ["consolidated", "huggingface", "gguf"])
def test_float16_is_computed_in_a_type_that_holds_what_is_computed(form: str, tmp_path: Path) -> None:
    """The gated half of a feed-forward passes 65,504 in this model, and its output does not."""
    weights = random_weights(SMALL)
    for name in weights:
        if name.endswith(("w1.weight", "w3.weight")):
            weights[name] *= 400
        elif name.endswith("w2.weight"):
            weights[name] /= 1e5
    halves = {name: tensor.half() for name, tensor in weights.items()}
    if form == "gguf":
        path = write_gguf(tmp_path / "m.gguf", SMALL, weights, GGMLQuantizationType.F16)
    elif form == "huggingface":
        huggingface_model(SMALL, weights, "Mistral").half().save_pretrained(path := tmp_path)
    else:
        path = write_consolidated(tmp_path, SMALL, halves)
    assert open_source(path).dtype == torch.float16
    model, text = load_model(path), torch.arange(30)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.layers[1].attention.wq.weight.half(), halves["layers.1.attention.wq.weight"])  # type: ignore[union-attr, arg-type]
    (logits,) = packed_logits(model, [text])
    assert logits.isfinite().all()
    (narrow,) = packed_logits(load_model(path, dtype=torch.float16), [text])
    assert not narrow.isfinite().all()
    assert {parameter.dtype for parameter in load_model(path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in load_model(path, device="meta").parameters()} == {torch.bfloat16}
    engine = Engine(model, ByteTokenizer(), max_seq_len=64, cache_tokens=64)
    card = Loaded("m", path, engine).card
    assert (card.format, card.cache_dtype) == ("float32", "float32")
    assert card.weights == weights_size(path, LoadOptions()) == 4 * SMALL.n_params
    assert weights_size(path, LoadOptions(dtype="bfloat16")) == 2 * SMALL.n_params


def test_a_gpu_that_is_too_small_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_consolidated(tmp_path, SMALL, random_weights(SMALL))

    def full(self: torch.Tensor, **_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(WeightsError, match=r"take 0.0 GB as float32, which the memory of the GPU has no room"):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conversion(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = random_weights(SMALL)
    model = load_model(write_consolidated(tmp_path, SMALL, weights), dtype=dtype)
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, weights[name].to(dtype)), name


def test_mixed_types_become_the_widest_of_the_matrices(tmp_path: Path) -> None:
    weights = {name: tensor.bfloat16() if tensor.ndim > 1 else tensor for name, tensor in random_weights(SMALL).items()}
    narrow = load_model(write_consolidated(tmp_path / "narrow", SMALL, weights))
    assert {parameter.dtype for parameter in narrow.parameters()} == {torch.bfloat16}
    weights["output.weight"] = weights["output.weight"].half()
    wide = load_model(write_consolidated(tmp_path / "wide", SMALL, weights))
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}


def test_weights_that_need_no_conversion_stay_in_the_file(tmp_path: Path) -> None:
    """A change of the file shows in the model: nothing was copied."""
    path = write_consolidated(tmp_path, SMALL, random_weights(SMALL))
    model = load_model(path)
    (file,) = tmp_path.glob("*.safetensors")
    with file.open("r+b") as stream:
        stream.seek(-4, 2)
        stream.write(bytes(4))
    assert model.state_dict()["tok_embeddings.weight"][-1, -1] == 0


@pytest.mark.parametrize("name", ["layers.1.ffn_norm.weight", "output.weight"])
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    weights = random_weights(SMALL)
    del weights[name]
    with pytest.raises(WeightsError, match=f"1 of 21 tensors are missing, '{name}' first"):
        load_model(write_consolidated(tmp_path, SMALL, weights))


def test_an_unexpected_tensor_is_named(tmp_path: Path) -> None:
    weights = random_weights(SMALL) | {"layers.0.attention.wq.bias": torch.zeros(16)}
    with pytest.raises(WeightsError, match=r"layers\.0\.attention\.wq\.bias.*no place"):
        load_model(write_consolidated(tmp_path, SMALL, weights))


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    weights = random_weights(SMALL) | {"layers.1.attention.wk.weight": torch.zeros(16, 16)}
    path = write_consolidated(tmp_path, SMALL, weights)
    with pytest.raises(WeightsError, match=r"layers\.1\.attention\.wk\.weight.*\[16, 16\].*\[8, 16\]") as refusal:
        load_model(path)
    assert str(path) in str(refusal.value)


def test_consolidated_is_preferred_to_huggingface(tmp_path: Path) -> None:
    weights = random_weights(SMALL)
    huggingface_model(SMALL, random_weights(SMALL, seed=1), "Mistral").save_pretrained(tmp_path)
    write_consolidated(tmp_path, SMALL, weights)
    assert torch.equal(open_source(tmp_path).tensor("norm.weight"), weights["norm.weight"])
    for file in tmp_path.glob("consolidated*"):
        file.unlink()
    assert not torch.equal(open_source(tmp_path).tensor("norm.weight"), weights["norm.weight"])


def test_a_folder_with_one_gguf(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "one.gguf", SMALL, random_weights(SMALL))
    assert open_source(tmp_path).path == path
    (tmp_path / "config.json").write_text("{}")  # as some publishers put beside it
    assert open_source(tmp_path).path == path
    write_gguf(tmp_path / "two.gguf", SMALL, random_weights(SMALL))
    with pytest.raises(WeightsError, match=r"2 GGUF files: name one"):
        open_source(tmp_path)


def test_nothing_that_is_known(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"params\.json.*consolidated.*config\.json.*\.gguf"):
        open_source(tmp_path)
    with pytest.raises(WeightsError, match="no such file or folder"):
        open_source(tmp_path / "nowhere")
    save_file({"norm.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="give a GGUF file, or the folder"):
        open_source(tmp_path / "model.safetensors")


SIXTEEN_BITS = torch.arange(2**16).int().to(torch.uint16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_16_bits_is_judged_as_isfinite_judges_it(dtype: torch.dtype) -> None:
    numbers = SIXTEEN_BITS.view(dtype)
    finite = numbers.isfinite()
    assert all_finite(numbers[finite])
    assert not any(all_finite(number) for number in numbers[~finite].split(1))


def test_numbers_of_32_bits_are_judged_as_isfinite_judges_them() -> None:
    limits = torch.finfo(torch.float32)
    finite = torch.tensor([limits.max, limits.min, limits.tiny, 1e-45, -0.0, 0.0])
    assert all_finite(finite)
    for number in (torch.nan, -torch.nan, torch.inf, -torch.inf):
        assert not all_finite(torch.cat((finite, torch.tensor([number]))))


def test_a_number_at_the_end_of_a_large_view_is_seen() -> None:
    tensor = torch.zeros(1000, 1100).t()
    tensor[-1, -1] = -torch.inf
    assert not all_finite(tensor)


Writer = Callable[[Path, dict[str, Any]], object]
WRITERS: dict[str, Writer] = {
    "consolidated.01.pth": lambda path, weights: write_consolidated(path, SMALL, weights, suffix=".pth", shards=2),
    "consolidated.01.safetensors": lambda path, weights: write_consolidated(path, SMALL, weights, shards=2),
    "model.safetensors": lambda path, weights: huggingface_model(SMALL, weights, "Mistral").save_pretrained(path),
    "model.gguf": lambda path, weights: write_gguf(path / "model.gguf", SMALL, weights),
    "f16.gguf": lambda path, weights: write_gguf(path / "f16.gguf", SMALL, weights, GGMLQuantizationType.F16),
}


@pytest.mark.parametrize("file", WRITERS)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_is_told_with_file_and_tensor(file: str, number: float, tmp_path: Path) -> None:
    weights = random_weights(SMALL)
    name = list(weights)[1]  # of the second shard, where there are two
    weights[name].view(-1)[-1] = number
    WRITERS[file](tmp_path, weights)
    with pytest.raises(WeightsError, match=rf"{file}: tensor '{name}' holds NaN or infinite numbers"):
        load_model(tmp_path)


def test_an_infinite_scale_of_a_quantised_block_is_told(tmp_path: Path) -> None:
    config = ModelConfig(
        dim=32, n_layers=1, head_dim=16, hidden_dim=32, n_heads=2, n_kv_heads=1, vocab_size=32, max_seq_len=64
    )
    path = write_gguf(tmp_path / "q8.gguf", config, random_weights(config), GGMLQuantizationType.Q8_0)
    data = path.read_bytes()
    path.write_bytes(data[:-34] + b"\x00\x7c" + data[-32:])  # the last block's scale, a float16
    with pytest.raises(WeightsError, match=r"q8\.gguf: tensor '.*' holds NaN or infinite numbers"):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_layers": 10**9}, "'n_layers' is 1000000000, and no model has more than"),
        ({"n_layers": 2**12}, "tensors of 2 layers, and the configuration says 4096"),
        ({"n_layers": 2**12, "sliding_window": [4096]}, "tensors of 2 layers"),
        ({"n_layers": 10**30, "sliding_window": [4096]}, "'n_layers' is"),
        ({"vocab_size": 10**12}, "'vocab_size' is 1000000000000"),
        ({"vocab_size": 2**20, "dim": 2**20, "hidden_dim": 2**20}, "but the configuration says"),
        ({"n_heads": 2**20, "head_dim": 2**20, "dim": 2**20}, "but the configuration says"),
        ({"max_seq_len": 10**12}, "'max_seq_len' is"),
        ({"moe": {"num_experts": 10**9, "num_experts_per_tok": 2}}, "'num_experts' is"),
        ({"moe": {"num_experts": 2**12, "num_experts_per_tok": 2}}, "tensors of 0 experts"),
        ({"norm_eps": True}, "norm_eps must be a positive number"),
        ({"rope_theta": "abc"}, "rope_theta must be a positive number, not 'abc'"),
        ({"rope_theta": [1e4]}, "rope_theta must be a positive number"),
        ({"rope_theta": 10**40}, "rope_theta"),
        ({"sliding_window": 7.5}, "sliding_window must be a whole number"),
        ({"sliding_window": {"a": 1}}, "sliding_window must be a whole number"),
        ({"dim": [16]}, "'dim' must be a whole number"),
        ({"head_dim": None}, "'head_dim'"),
        ({"tied_embeddings": "no"}, "'tied_embeddings' must be true or false, not 'no'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_the_files_do_not_back_costs_nothing(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    write_consolidated(tmp_path, SMALL, random_weights(SMALL))
    params = tmp_path / "params.json"
    params.write_text(json.dumps(json.loads(params.read_text()) | change))
    started = time.monotonic()
    with pytest.raises(WeightsError, match=says) as refusal:
        load_model(tmp_path)
    assert time.monotonic() - started < 2
    assert str(tmp_path) in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_a_missing_consolidated_shard_is_told_by_its_tensors(tmp_path: Path) -> None:
    weights = random_weights(SMALL)
    write_consolidated(tmp_path, SMALL, weights, shards=3)
    (tmp_path / "consolidated.01.safetensors").unlink()
    with pytest.raises(WeightsError, match=f"7 of 21 tensors are missing, '{list(weights)[1]}' first: fetch"):
        load_model(tmp_path)
