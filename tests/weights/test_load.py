"""Which format a path is, and a checkpoint into a model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cierzo.errors import WeightsError
from cierzo.model import ModelConfig
from cierzo.weights import load_model, open_source
from support.checkpoints import huggingface_model, random_weights, write_consolidated, write_gguf

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
