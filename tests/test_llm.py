"""The public face, with the default model's real weights."""

import json
from pathlib import Path

import mistral_common
import pytest
import torch
from safetensors.torch import save_file

import cierzo
from cierzo import LLM, SamplingParams
from cierzo.errors import CierzoError
from cierzo.tokens import decode
from support.models import tiny_config, tiny_model

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = SamplingParams(temperature=0, max_tokens=16)


@pytest.fixture(scope="module")
def llm(default_gguf: Path) -> LLM:
    return LLM(default_gguf, cache_tokens=16_384)


def test_it_knows_the_capital_of_france(llm: LLM) -> None:
    answer = llm.chat(QUESTION, GREEDY)
    assert answer.text == "The capital of France is Paris."
    assert answer.finish_reason == "stop"
    assert answer.usage.prompt_tokens == 37
    assert answer.usage.completion_tokens == 8 == len(answer.token_ids)
    assert 0 < answer.usage.time_to_first_token <= answer.usage.seconds


def test_a_stream_is_the_answer_in_pieces(llm: LLM) -> None:
    deltas = list(llm.stream_chat(QUESTION, GREEDY))
    assert "".join(d.text for d in deltas) == "The capital of France is Paris."
    assert [d.finish_reason for d in deltas] == [None] * 7 + ["stop"]


def test_completions_go_on_in_the_text(llm: LLM) -> None:
    [answer] = llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=3))
    assert answer.text.startswith(" Paris")


def test_many_prompts_at_once_answer_as_alone(llm: LLM) -> None:
    prompts = ["One, two, three,", "The sky is", "In 1492,"]
    together = [a.token_ids for a in llm.generate(prompts, GREEDY)]
    assert together == [llm.generate(p, GREEDY)[0].token_ids for p in prompts]


def test_samples_of_a_prompt_differ_and_repeat_by_seed(llm: LLM) -> None:
    params = SamplingParams(temperature=1.5, max_tokens=12, seed=3)
    first = [a.text for a in llm.generate("Once upon a time", params, n=3)]
    assert len(set(first)) == 3
    assert [a.text for a in llm.generate("Once upon a time", params, n=3)] == first


def test_streams_can_run_side_by_side_and_be_left(llm: LLM) -> None:
    one, two = llm.stream("A, B, C,", GREEDY), llm.stream("1, 2, 3,", GREEDY)
    texts = ["", ""]
    for _ in range(4):
        texts[0] += next(one).text
        texts[1] += next(two).text
    one.close()
    texts[1] += "".join(d.text for d in two)
    assert texts[1] == llm.generate("1, 2, 3,", GREEDY)[0].text
    assert all(pool.free == pool.size for pool in llm._engine.pools)


def test_scores_prefer_sense(llm: LLM) -> None:
    sense, nonsense = llm.score(["The capital of France is Paris.", "The capital of France is banana."], top=1)
    assert sum(t.logprob for t in sense) > sum(t.logprob for t in nonsense)
    ids = llm.tokenizer.encode("The capital of France is Paris.", bos=True)
    assert [t.token_id for t in sense] == ids[1:]
    assert all(len(t.top) == 1 and t.top[0][1] >= t.logprob - 1e-6 for t in sense)


def test_japanese_streams_without_half_characters(llm: LLM) -> None:
    ids = llm.tokenizer.encode("日本語👩‍👩‍👧")
    bias = dict.fromkeys(ids, 50.0)
    deltas = list(llm.stream("x", SamplingParams(logit_bias=bias, max_tokens=40, seed=1, ignore_eos=True)))
    text = "".join(d.text for d in deltas)
    assert text == decode(llm.tokenizer, [t for d in deltas for t in d.token_ids], continues=True)


def test_a_prompt_over_the_limit_is_refused_with_both_numbers(llm: LLM) -> None:
    with pytest.raises(CierzoError, match=r"9000 prompt tokens .* limit of 8192"):
        llm.generate([5] * 9000)
    with pytest.raises(CierzoError, match="needs a window in every layer"):
        LLM(llm.path, allow_beyond_limit=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "int3"}, "dtype 'int3' is not supported"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"max_seq_len": 10_000}, "max_seq_len 10000 is more than the 8192"),
        ({"cache_tokens": 10**15}, "no memory for a cache"),
        ({"chat_template": "/nowhere.jinja"}, "nor a readable file"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(default_gguf: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(CierzoError, match=says):
        LLM(default_gguf, **options)  # type: ignore[arg-type]


@pytest.fixture
def windowed(tmp_path: Path) -> Path:
    """A tiny consolidated checkpoint with Mistral's v1 tokenizer: a base model by its name."""
    config = tiny_config(vocab_size=32_000, sliding_window=16, max_seq_len=64)
    names = ("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "sliding_window")
    params = {name: getattr(config, name) for name in names} | {"vocab_size": 32_000, "max_seq_len": 64}
    (tmp_path / "params.json").write_text(json.dumps(params))
    save_file(tiny_model(config).state_dict(), tmp_path / "consolidated.safetensors")
    vocabulary = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    (tmp_path / "tokenizer.model").write_bytes(vocabulary.read_bytes())
    return tmp_path


def test_a_windowed_model_goes_past_its_limit_only_when_told(windowed: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    with pytest.raises(CierzoError, match="allow_beyond_limit"):
        LLM(windowed).generate("Wind", params)
    llm = LLM(windowed, allow_beyond_limit=True, block_size=4, chunk_size=8)
    assert len(llm.generate("Wind", params)[0].token_ids) == 200
    assert llm._engine.pools[0].size == 16 * 7  # sixteen sequences: the window bounds what one needs


def test_a_base_model_refuses_chats_and_completes(windowed: Path) -> None:
    llm = LLM(windowed)
    with pytest.raises(CierzoError, match="base model without a chat template"):
        llm.chat(QUESTION)
    assert len(llm.generate("Wind", SamplingParams(max_tokens=3, ignore_eos=True))[0].token_ids) == 3
    assert LLM(windowed, chat_template="mistral", dtype="bfloat16").chat(QUESTION, GREEDY).token_ids


def test_weights_and_tokenizer_must_be_of_one_model(windowed: Path) -> None:
    tekken = Path(mistral_common.__file__).parent / "data" / "tekken_240718.json"
    (windowed / "tekken.json").write_bytes(tekken.read_bytes())
    with pytest.raises(CierzoError, match="not of one model"):
        LLM(windowed)


def test_load_gives_the_parts(windowed: Path) -> None:
    model, tokenizer = cierzo.load(windowed)
    assert model.config.vocab_size == tokenizer.vocab_size
    assert model.output is not None
    assert model.output.weight.dtype == torch.float32


def test_a_stream_that_nobody_reads_is_cancelled_by_closing_it(llm: LLM) -> None:
    stream = llm.stream("A, B, C,", GREEDY)
    stream.close()
    assert not llm._engine.busy
    assert list(stream) == []


def test_an_answer_without_a_length_ends_with_the_cache(default_gguf: Path) -> None:
    small = LLM(default_gguf, cache_tokens=64)
    [answer] = small.generate("The sky", SamplingParams(temperature=0, ignore_eos=True))
    assert answer.finish_reason == "length"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == 64
    with pytest.raises(CierzoError, match="need a cache"):
        small.generate("The sky", SamplingParams(max_tokens=200))
