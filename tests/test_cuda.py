"""On a CUDA GPU the reference computes what it computes on the CPU, within the rounding of its numbers."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType

from cierzo import LLM, SamplingParams
from cierzo.engine import Engine, Structure
from cierzo.engine import Sequence as EngineSequence
from cierzo.errors import WeightsError
from cierzo.model import ModelConfig, MoeConfig, Transformer
from cierzo.ops import PackedContext
from cierzo.weights.load import load_model
from support.checkpoints import random_weights, write_consolidated, write_gguf
from support.models import ByteTokenizer, queue, tiny_config, tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

CONFIGS = {
    "multi-head": tiny_config(n_kv_heads=4),
    "multi-query, sliding": tiny_config(n_kv_heads=1, sliding_window=20),
    "grouped, dilated": tiny_config(sliding_window=9, window_dilation=3),
    "mixed windows": tiny_config(n_layers=3, sliding_window=(9, None, 30)),
    "mixture": tiny_config(moe=MoeConfig(num_experts=4, num_experts_per_tok=2)),
}
PROMPTS = [list(range(length)) for length in (3, 50, 131)]
ASKED = [
    SamplingParams(temperature=0, max_tokens=40, logprobs=3),
    SamplingParams(temperature=1, seed=1, max_tokens=40, top_k=40, top_p=0.9, min_p=0.01, logit_bias={7: 2.0}),
    SamplingParams(temperature=1, seed=2, max_tokens=40, repetition_penalty=1.3, frequency_penalty=0.5),
    SamplingParams(temperature=1, seed=3, max_tokens=40, structure=Structure("regex", "[a-f]{1,30}")),
]


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return CONFIGS[request.param]


def on_gpu(model: Transformer) -> Transformer:
    return deepcopy(model).to("cuda")


def answers(model: Transformer, prompts: list[list[int]], asked: list[SamplingParams], **options: Any) -> list[Any]:
    """What the engine says when everything is asked at once: tokens and the log-probabilities told of them."""
    engine = Engine(model, ByteTokenizer(), max_seq_len=400, cache_tokens=4000, block_size=4, chunk_size=16, **options)
    said = [queue(engine, prompt, params) for prompt in prompts for params in asked]
    run(engine, said)
    return [
        (
            [t for delta in one.deltas for t in delta.token_ids],
            [p.logprob for delta in one.deltas for p in delta.logprobs],
        )
        for one in said
    ]


def run(engine: Engine, sequences: list[EngineSequence]) -> None:
    while any(sequence.finish_reason is None for sequence in sequences):
        engine.step()
    assert all(sequence.finish_reason in ("stop", "length") for sequence in sequences)


def scores_of(engine: Engine, ids: list[int]) -> list[float]:
    scored = queue(engine, ids, SamplingParams(logprobs=0), task="score")
    run(engine, [scored])
    return [told.logprob for told in scored.prompt_logprobs]


@torch.inference_mode()
def test_documents_side_by_side(config: ModelConfig) -> None:
    model = tiny_model(config)
    ids = torch.randint(256, (103,), generator=torch.Generator().manual_seed(0))
    there = on_gpu(model)(ids.cuda(), PackedContext([70, 33], "cuda"))
    torch.testing.assert_close(there.cpu(), model(ids, PackedContext([70, 33])), atol=1e-3, rtol=1e-4)


def test_many_at_once_say_the_same(config: ModelConfig) -> None:
    model = tiny_model(config)
    here, there = (answers(m, PROMPTS, ASKED, cache_dtype=torch.float32) for m in (model, on_gpu(model)))
    for (tokens, logprobs), (tokens_there, logprobs_there) in zip(here, there, strict=True):
        assert tokens_there == tokens
        assert logprobs_there == pytest.approx(logprobs, abs=1e-3)


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.int8])
def test_rounded_keys(cache_dtype: torch.dtype) -> None:
    model = tiny_model(tiny_config(sliding_window=20))
    options: dict[str, Any] = {"max_seq_len": 400, "cache_tokens": 800, "block_size": 4, "chunk_size": 16}
    ids = list(range(200))
    here, there = (
        scores_of(Engine(m, ByteTokenizer(), cache_dtype=cache_dtype, **options), ids) for m in (model, on_gpu(model))
    )
    # A number at the edge between two of a type's may be rounded to either.
    assert there == pytest.approx(here, abs=0.05)


def test_gradients_flow() -> None:
    model = on_gpu(tiny_model(tiny_config(sliding_window=20))).requires_grad_(True)
    model(torch.arange(60, device="cuda"), PackedContext([60], "cuda")).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_consolidated_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    config = CONFIGS["mixed windows"]
    weights = {name: tensor.to(dtype) for name, tensor in random_weights(config).items()}
    model = load_model(write_consolidated(tmp_path / "model", config, weights), device="cuda")
    for name, parameter in model.named_parameters():
        assert parameter.is_cuda
        assert torch.equal(parameter.cpu(), weights[name])


def test_weights_in_few_bits_become_bfloat16(tmp_path: Path) -> None:
    config = tiny_config(dim=64, hidden_dim=96, head_dim=16)
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config), GGMLQuantizationType.Q4_0)
    here, there = load_model(path), load_model(path, device="cuda")
    for name, parameter in there.named_parameters():
        assert torch.equal(parameter.cpu(), here.get_parameter(name).bfloat16())


@pytest.fixture
def little_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-5)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("little_memory")
def test_too_little_memory_is_told(tmp_path: Path) -> None:
    config = tiny_config(dim=1024, hidden_dim=4096, head_dim=64, n_heads=16)
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config))
    with pytest.raises(WeightsError, match="memory of the GPU"):
        load_model(path, device="cuda")


def test_the_default_model_says_the_same(default_gguf: Path) -> None:
    prompt = "The capital of France is Paris. The capital of Italy is"
    params = SamplingParams(temperature=0, max_tokens=16)
    here, there = (LLM(default_gguf, dtype="float32", device=device) for device in ("cpu", "cuda"))
    assert there.generate(prompt, params)[0].token_ids == here.generate(prompt, params)[0].token_ids
    assert " Rome" in LLM(default_gguf, device="cuda").generate(prompt, params)[0].text
