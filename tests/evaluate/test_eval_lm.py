"""Our engine as a model of the harness: the scores of `transformers`, and runs that go on."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'cierzo[eval]'")

from lm_eval.api.instance import Instance

from cierzo import LLM, tokenizer_files
from cierzo.errors import CierzoError
from cierzo.evaluate.__main__ import main
from cierzo.evaluate.journal import Journal
from cierzo.evaluate.lm import CierzoLM
from cierzo.evaluate.record import about_model, common_settings, lasting
from cierzo.evaluate.suite import Options, run_suite, table
from cierzo.weights.export import export_huggingface

PAIRS = (
    ("The capital of France is", " Paris"),
    ("The capital of France is", " Rome, of course"),
    ("The capital of France is ", "Paris"),
    ("Question: What do bees make?\nAnswer:", " honey"),
    ("Question: What do bees make?\nAnswer:", " wax and noise"),
    ("def add(a, b):\n    return", " a + b"),
    ("", "Once upon a time"),
)
TEXTS = ("The quick brown fox jumps over the lazy dog.", "One two three four five six seven " * 20)
PROMPTS = ("The capital of France is", "Once upon a time, in a village by the sea,", "1, 2, 3, 4,")


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=a, idx=0, metadata=("t", n, 1)) for n, a in enumerate(arguments)
    ]


@pytest.fixture(scope="module")
def reference(exact: CierzoLM, default_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`transformers` through the harness, on the same weights, dequantised."""
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("hf") / "smollm2"
    export_huggingface(
        default_gguf, folder, dtype=torch.float32, tokenizer=lambda folder: tokenizer_files(default_gguf, folder)
    )
    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4, max_length=96,
                prefix_token_id=exact.prefix_token_id)  # fmt: skip


@pytest.fixture(scope="module")
def exact(default_gguf: Path) -> CierzoLM:
    """Ours on the float32 path."""
    return CierzoLM(default_gguf, dtype="float32", cache_tokens=8192)


def test_scores_are_those_of_transformers(exact: CierzoLM, reference: Any) -> None:
    asked = requests("loglikelihood", *PAIRS)
    theirs = reference.loglikelihood(asked, disable_tqdm=True)
    ours = exact.loglikelihood(asked)
    for own, other, pair in zip(ours, theirs, PAIRS, strict=True):
        assert own[0] == pytest.approx(other[0], abs=2e-3), pair
        assert own[1] == other[1], pair


def test_whole_texts_are_scored_as_by_transformers(default_gguf: Path, reference: Any) -> None:
    ours = CierzoLM(default_gguf, dtype="float32", max_length=97, cache_tokens=1024)  # theirs counts a token less
    asked = requests("loglikelihood_rolling", *((text,) for text in TEXTS))
    theirs = reference.loglikelihood_rolling(asked, disable_tqdm=True)
    assert ours.loglikelihood_rolling(asked) == pytest.approx(theirs, abs=2e-2)


def test_answers_are_those_of_transformers(exact: CierzoLM, reference: Any) -> None:
    settings = {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False}
    asked = requests("generate_until", *((prompt, settings) for prompt in PROMPTS))
    assert exact.generate_until(asked) == reference.generate_until(asked, disable_tqdm=True)


def test_items_score_as_with_transformers(data: Path, exact: CierzoLM, reference: Any) -> None:
    options = Options(("hellaswag", "winogrande", "boolq"), limit=3, data=data)
    ours, theirs = run_suite(exact, options), run_suite(reference, options)
    for name in options.benchmarks:
        assert ours[name]["items"] == theirs[name]["items"], name
        assert ours[name]["prompts"] == theirs[name]["prompts"]
        assert ours[name]["n"] == 3


def test_a_shared_beginning_is_computed_once(data: Path, default_gguf: Path) -> None:
    lm = CierzoLM(default_gguf, cache_tokens=8192)
    result = run_suite(lm, Options(("mmlu",), limit=2, data=data))["mmlu"]
    assert result["n"] == 2
    metrics = lm.llm.metrics
    assert metrics.cached_tokens > 0.65 * metrics.prompt_tokens


def test_a_conversation_is_the_template_s_tokens(smollm2: LLM) -> None:
    lm = CierzoLM(smollm2)
    messages = [{"role": "user", "content": "Say <|im_end|> and stop."}]
    ids = lm.encode(lm.apply_chat_template(messages))
    assert ids == smollm2.tokenizer.encode_chat(messages)
    begun = lm.apply_chat_template([*messages, {"role": "assistant", "content": "Well"}], add_generation_prompt=False)
    assert lm.encode(begun) == ids + smollm2.tokenizer.encode("Well")
    [(score, _)] = lm.loglikelihood(requests("loglikelihood", (lm.apply_chat_template(messages), " Yes")))
    answer = smollm2.tokenizer.encode(" Yes")
    expected = smollm2.score([*ids, *answer], first=len(ids))[0]
    assert score == pytest.approx(sum(token.logprob for token in expected), abs=1e-6)


def test_the_begin_of_text_token_is_the_model_s(smollm2: LLM) -> None:
    assert CierzoLM(smollm2).encode("Hi") == smollm2.tokenizer.encode("Hi")  # SmolLM2's texts begin without one
    with pytest.raises(CierzoError, match="begin with no begin-of-text token"):
        CierzoLM(smollm2, add_bos=True)


def test_what_is_too_long_loses_its_beginning_and_is_counted(default_gguf: Path) -> None:
    lm = CierzoLM(default_gguf, max_length=32, cache_tokens=512)
    long = "one two three four five six seven eight nine ten " * 8
    assert len(lm.encode(long)) > 32
    [(score, _)] = lm.loglikelihood(requests("loglikelihood", (long.strip(), " eleven")))
    ids = lm.encode(long.strip() + " eleven")[-32:]
    assert score == pytest.approx(lm.llm.score(ids, first=31)[0][0].logprob, abs=1e-6)
    assert lm.truncated == 1


def test_samples_differ_and_come_again(smollm2: LLM) -> None:
    settings = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    [asked] = requests("generate_until", ("The best thing about", settings))
    texts = CierzoLM(smollm2, seed=3).generate_until([asked] * 4)
    assert len(set(texts)) > 1
    assert CierzoLM(smollm2, seed=3).generate_until([asked] * 4) == texts
    assert CierzoLM(smollm2, seed=4).generate_until([asked] * 4) != texts


def test_a_setting_that_is_not_known_is_told(smollm2: LLM) -> None:
    asked = requests("generate_until", ("Hi", {"until": [], "num_beams": 4}))
    with pytest.raises(CierzoError, match="num_beams"):
        CierzoLM(smollm2).generate_until(asked)


class Killed(BaseException):
    """The process ends here."""


def dying(work: Callable[..., Any], times: int) -> Callable[..., Any]:
    """Works so often, and then the process is killed."""
    left = iter(range(times))

    def once(*arguments: Any, **named: Any) -> Any:
        if next(left, None) is None:
            raise Killed
        return work(*arguments, **named)

    return once


def test_a_run_that_was_killed_goes_on(
    data: Path, smollm2: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(("hellaswag", "arc_easy", "naturalquestions"), limit=3, data=data, seed=5)
    monkeypatch.setattr("cierzo.evaluate.lm._BATCH", 4)
    whole = run_suite(CierzoLM(smollm2, seed=5), options)
    path = tmp_path / "run.json.partial"
    kept = 0
    for work, times in (("score", 3), ("generate", 0)):
        with Journal(path, {"seed": 5}) as journal, monkeypatch.context() as patch:
            patch.setattr(smollm2, work, dying(getattr(smollm2, work), times))
            with pytest.raises(Killed):
                run_suite(CierzoLM(smollm2, seed=5, journal=journal), options)
        assert len(journal.answers) > kept
        kept = len(journal.answers)
    with path.open("ab") as file:
        file.write(b'["half a li')
    with Journal(path, {"seed": 5}) as journal:
        assert len(journal.answers) == kept
        assert run_suite(CierzoLM(smollm2, seed=5, journal=journal), options) == whole
    assert "HellaSwag" in table(whole)[0]


def test_a_journal_is_of_one_run(tmp_path: Path) -> None:
    path = tmp_path / "a.partial"
    with Journal(path, {"seed": 1}) as journal:
        journal.add("a", [1.5, True])
        with pytest.raises(CierzoError, match="another run writes"):
            Journal(path, {"seed": 1})
    with Journal(path, {"seed": 1}) as journal:
        assert journal.answers == {"a": [1.5, True]}
    with pytest.raises(CierzoError, match=r"other settings \(seed\)"):
        Journal(path, {"seed": 2})
    with pytest.raises(CierzoError, match=r"other settings \(model.context, seed\)"):
        _nested(tmp_path / "b.partial")
    path.write_text("poem\n")
    with pytest.raises(CierzoError, match="no journal of a run"):
        Journal(path, {"seed": 1})
    assert {p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")} == {"a.partial", "b.partial"}


def _nested(path: Path) -> None:
    for context, seed in ((8, (1, 2)), (8, (1, 2)), (9, (1, 3))):
        with Journal(path, {"seed": seed, "model": {"name": "m", "context": context}}):
            pass


def test_a_run_goes_on_whatever_memory_and_threads_are_free(default_gguf: Path, smollm2: LLM) -> None:
    other = about_model(LLM(default_gguf, cache_tokens=8192))
    first = about_model(smollm2)
    assert other["cache_tokens"] != first["cache_tokens"]
    assert lasting(other) == lasting(first)
    assert lasting(other | {"threads": 99}) == lasting(first)
    assert lasting(other | {"sha256": "0"}) != lasting(first)


def test_a_template_of_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    found = []
    for text in ("a", "b"):
        file.write_text(text)
        found.append(common_settings(str(file)))
    assert found[0] != found[1]
    assert common_settings("chatml")["chat_template"] == "chatml"
    assert common_settings(None)["version"]


def test_the_harness_s_own_command_tells_mistakes_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def lm_eval() -> None:
        raise CierzoError("there is no model 'x'")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lm_eval)
    with pytest.raises(SystemExit, match=r"^error: there is no model 'x'$"):
        main()
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(SystemExit, match=r"^error: this needs lm_eval.__main__: pip install 'cierzo\[eval\]'$"):
        main()
