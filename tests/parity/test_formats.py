"""The same random model through every format gives the logits of `transformers` on the same weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from torch import Tensor

from cierzo.model import ModelConfig, MoeConfig
from cierzo.weights import load_model, open_source
from support.checkpoints import huggingface_model, random_weights, write_consolidated, write_gguf
from support.logits import packed_logits, paged_logits

TOLERANCE = 1e-4


def shape(**values: Any) -> ModelConfig:
    """Sizes that are multiples of nothing, heads wider than dim / n_heads, and a window shorter than the text."""
    odd: dict[str, Any] = {
        "dim": 54, "n_layers": 3, "head_dim": 14, "hidden_dim": 77, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 101,
        "max_seq_len": 128,
    }  # fmt: skip
    return ModelConfig(**odd | values)


MODELS = {
    "mistral-window": ("Mistral", shape(sliding_window=7)),
    "mistral-wider-window": ("Mistral", shape(sliding_window=16, n_kv_heads=3, norm_eps=1e-3)),
    "mistral-full": ("Mistral", shape(rope_theta=1e6)),
    "mistral-multi-query-tied": ("Mistral", shape(sliding_window=7, n_kv_heads=1, tied_embeddings=True)),
    "mistral-multi-head": ("Mistral", shape(sliding_window=7, n_kv_heads=6, head_dim=6, vocab_size=67)),
    "mixtral": ("Mixtral", shape(moe=MoeConfig(5, 2), rope_theta=1e6)),
    "mixtral-window": ("Mixtral", shape(moe=MoeConfig(3, 3), sliding_window=7, tied_embeddings=True)),
    "ministral": ("Ministral", shape(n_layers=4, sliding_window=(None, 7, 7, 7), rope_theta=1e8)),
    "ministral-alternating": ("Ministral", shape(n_layers=4, sliding_window=(16, None) * 2, n_kv_heads=1)),
    "llama": ("Llama", shape(head_dim=18, n_kv_heads=6)),
    "llama-grouped-tied": ("Llama", shape(n_heads=9, head_dim=8, n_kv_heads=3, tied_embeddings=True, rope_theta=1e5)),
}

Write = Callable[[Path, ModelConfig, dict[str, Tensor], Any], Path]


def saved(folder: Path, model: Any, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


FORMATS: dict[str, Write] = {
    "huggingface": lambda path, config, weights, model: saved(path, model),
    "huggingface-shards": lambda path, config, weights, model: saved(path, model, max_shard_size="30KB"),
    "huggingface-fused": lambda path, config, weights, model: saved(path, model, save_original_format=False),
    "consolidated": lambda path, config, weights, model: write_consolidated(path, config, weights),
    "consolidated-shards": lambda path, config, weights, model: write_consolidated(path, config, weights, shards=3),
    "consolidated-pth": lambda path, config, weights, model: write_consolidated(path, config, weights, suffix=".pth"),
    "gguf": lambda path, config, weights, model: write_gguf(path.with_suffix(".gguf"), config, weights),
    "gguf-apart": lambda path, config, weights, model: write_gguf(
        path.with_suffix(".gguf"), config, weights, merged_experts=False
    ),
}


def transformers_logits(model: Any, text: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(text.unsqueeze(0)).logits[0]
    return logits


def assert_agree(ours: Tensor, theirs: Tensor, what: str) -> None:
    worst = (ours - theirs).abs().max().item()
    assert worst < TOLERANCE, f"{what}: logits differ by {worst}"


def texts(config: ModelConfig) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(config.vocab_size, (length,), generator=generator) for length in (61, 40)]


@pytest.mark.parametrize("name", MODELS)
def test_every_format_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    kind, config = MODELS[name]
    weights = random_weights(config)
    reference = huggingface_model(config, weights, kind)
    long, short = texts(config)
    expected = [transformers_logits(reference, text) for text in (long, short)]
    assert expected[0].std() > 0.5, "logits too flat to tell a right model from a wrong one"
    for form, write in FORMATS.items():
        if form.startswith("gguf") and isinstance(config.sliding_window, tuple):
            continue  # the llama architecture of GGUF has one window
        if form in ("huggingface-fused", "gguf-apart") and not config.moe:
            continue
        path = write(tmp_path / form, config, weights, reference)
        model = load_model(path)
        assert model.config == config, form
        for number, ours in enumerate(packed_logits(model, [long, short])):
            assert_agree(ours, expected[number], f"{form}, text {number}")
        assert_agree(paged_logits(model, long, (1, 17, 6, 30)), expected[0], f"{form}, paged")


@pytest.mark.parametrize("wrong", [{"sliding_window": 8}, {"sliding_window": 6}, {"rope_theta": 1.01e4}])
def test_a_window_off_by_one_or_another_rope_base_is_seen(wrong: dict[str, Any], tmp_path: Path) -> None:
    kind, config = MODELS["mistral-window"]
    weights = random_weights(config)
    text = texts(config)[0]
    expected = transformers_logits(huggingface_model(config, weights, kind), text)
    values = {name: getattr(config, name) for name in config.__dataclass_fields__} | wrong
    model = load_model(write_consolidated(tmp_path, ModelConfig(**values), weights))
    assert (packed_logits(model, [text])[0] - expected).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("kind", [GGMLQuantizationType.F16, GGMLQuantizationType.BF16, GGMLQuantizationType.Q8_0])
@pytest.mark.parametrize("moe", [None, MoeConfig(3, 2)])
def test_gguf_types_give_the_logits_of_the_rounded_weights(
    kind: GGMLQuantizationType, moe: MoeConfig | None, tmp_path: Path
) -> None:
    config = shape(dim=64, head_dim=16, n_heads=6, hidden_dim=96, moe=moe, sliding_window=7)
    weights = random_weights(config)
    path = write_gguf(tmp_path / "model.gguf", config, weights, kind)
    rounded = {
        name: torch.from_numpy(dequantize(quantize(w.numpy(), kind), kind))
        if w.ndim == 2 and not name.endswith("gate.weight")
        else w
        for name, w in weights.items()
    }
    assert not torch.equal(rounded["tok_embeddings.weight"], weights["tok_embeddings.weight"])
    reference = huggingface_model(config, rounded, "Mixtral" if moe else "Mistral")
    text = texts(config)[0]
    model = load_model(path, dtype=torch.float32)
    assert_agree(packed_logits(model, [text])[0], transformers_logits(reference, text), kind.name)


@pytest.mark.parametrize("form", ["huggingface", "consolidated", "consolidated-pth"])
def test_bfloat16_stays_bfloat16_and_mapped(form: str, tmp_path: Path) -> None:
    kind, config = MODELS["mistral-window"]
    weights = {name: w.bfloat16() for name, w in random_weights(config).items()}
    reference = huggingface_model(config, {name: w.float() for name, w in weights.items()}, kind)
    text = texts(config)[0]
    expected = transformers_logits(reference, text)
    path = FORMATS[form](tmp_path / form, config, weights, reference.bfloat16())
    source = open_source(path)
    assert source.dtype == torch.bfloat16
    assert {p.dtype for p in load_model(path).parameters()} == {torch.bfloat16}
    widened = load_model(path, dtype=torch.float32)
    assert_agree(packed_logits(widened, [text])[0], expected, form)
