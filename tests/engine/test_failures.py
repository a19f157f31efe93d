"""What goes wrong in a step hits only whose fault it is, says why, and leaves no block behind."""

import re
from typing import Any

import pytest
import torch

from cierzo import ops
from cierzo.engine import Engine, SamplingParams, Structure
from cierzo.engine.request import Completion
from cierzo.errors import CierzoError, EngineError
from cierzo.ops import Draw
from support.books import all_free, check_books
from support.models import queue, tiny_config, tiny_engine

PARAMS = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def failing_with(engine: Engine, poison: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model fail whenever it sees the token `poison`."""
    hidden = engine.model.hidden

    def run(tokens: torch.Tensor, context: Any) -> torch.Tensor:
        if poison in tokens.tolist():
            raise RuntimeError("out of memory, say")
        return hidden(tokens, context)

    monkeypatch.setattr(engine.model, "hidden", run)


def finish(engine: Engine) -> None:
    while engine.busy:
        engine.step()
        check_books(engine)


def test_a_failing_step_fails_only_its_culprit(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine(tiny_config())
    expected = queue(engine, [1, 2, 3], PARAMS)
    finish(engine)
    failing_with(engine, 200, monkeypatch)
    good, bad = queue(engine, [1, 2, 3], PARAMS), queue(engine, [4, 200, 5], PARAMS)
    finish(engine)
    assert good.ids == expected.ids
    assert bad.finish_reason == "error"
    assert bad.error == "RuntimeError: out of memory, say"
    with pytest.raises(EngineError, match="out of memory"):
        Completion.of(bad.deltas)
    assert engine.failure is None
    assert all_free(engine)
    assert engine.metrics.finished == {"length": 2, "error": 1}


def test_an_engine_that_cannot_go_on_says_so_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine(tiny_config(), max_running=1)
    monkeypatch.setattr(engine.model, "hidden", lambda *_: 1 / 0)
    running, waiting = queue(engine, [1], PARAMS), queue(engine, [2], PARAMS)
    changed = engine.step()
    assert changed == [running, waiting]
    assert engine.failure is not None
    assert "ZeroDivisionError" in engine.failure
    assert (running.finish_reason, waiting.finish_reason) == ("error", "error")
    with pytest.raises(EngineError, match="has stopped"):
        queue(engine, [3], PARAMS)
    assert all_free(engine)
    assert not engine.busy


def test_a_fault_in_taking_the_answer_is_one_requests_own(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine(tiny_config())
    good, bad = queue(engine, [1, 2, 3], PARAMS), queue(engine, [1, 2, 4], PARAMS)
    monkeypatch.setattr(bad.text, "push", lambda token: 1 / 0)
    finish(engine)
    assert (good.finish_reason, bad.finish_reason) == ("length", "error")
    assert all_free(engine)


def test_numbers_that_are_none_end_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine(tiny_config())
    scores = engine.model.scores
    monkeypatch.setattr(engine.model, "scores", lambda *a: scores(*a) * torch.nan)
    sequence = queue(engine, [1], PARAMS)
    finish(engine)
    assert sequence.error is not None
    assert "no numbers" in sequence.error


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (Structure("regex", "[a"), "regex cannot be used.*unclosed character class"),
        (Structure("regex", "(?=a)b"), "regex cannot be used"),
        (Structure("json_schema", {"type": "nothing"}), "json_schema cannot be used"),
        (Structure("json_schema", "{"), "json_schema is no JSON"),
        (Structure("json_schema", {"a": object()}), "json_schema is no JSON"),
        (Structure("json_schema", 3), "must be a mapping"),
        (Structure("grammar", "start: x"), "unknown name"),
        (Structure("grammar", "start: " + "a" * 2**18), "are the most"),
        (Structure("choice", []), "list of texts"),
        (Structure("choice", ["a", ""]), "none of them empty"),
        (Structure("poem", "x"), "'poem' is not supported"),  # type: ignore[arg-type]
    ],
)
def test_forms_that_cannot_be_had_are_refused_with_the_reason(structure: Structure, message: str) -> None:
    engine = tiny_engine(tiny_config())
    with pytest.raises(CierzoError, match=message):
        engine.prepare([1], SamplingParams(structure=structure))


@pytest.mark.parametrize(
    ("structure", "pattern"),
    [
        (Structure("regex", "[0-9]{3}-[a-z]{2}"), "[0-9]{3}-[a-z]{2}"),
        (Structure("choice", ["yes", "no", 'a "quoted" one']), '(yes|no|a "quoted" one)'),
        (Structure("grammar", 'start: "a" b "c"\nb: /[x-z]{5}/'), "a[x-z]{5}c"),
        (Structure("json_schema", {"enum": [1, 22]}), "(1|22)"),
    ],
)
def test_answers_have_their_form(structure: Structure, pattern: str) -> None:
    engine = tiny_engine(tiny_config())
    for seed in range(8):
        params = SamplingParams(temperature=1.5, seed=seed, max_tokens=40, structure=structure)
        sequence = queue(engine, [1, 2], params)
        finish(engine)
        text = "".join(d.text for d in sequence.deltas)
        assert sequence.finish_reason == "stop"
        assert re.fullmatch(pattern, text), text


def test_a_draw_that_fails_is_one_requests_own(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine(tiny_config())
    expected = queue(engine, [1, 2, 3], PARAMS)
    finish(engine)
    own, bad_top_k = ops.sample, 7

    def sample(draws: list[Draw]) -> list[int]:
        if any(draw.top_k == bad_top_k for draw in draws):
            raise RuntimeError("no such draw")
        return own(draws)

    monkeypatch.setattr("cierzo.engine.engine.sample", sample)
    good, bad = queue(engine, [1, 2, 3], PARAMS), queue(engine, [1], SamplingParams(top_k=bad_top_k))
    finish(engine)
    assert good.ids == expected.ids
    assert (bad.finish_reason, bad.error) == ("error", "RuntimeError: no such draw")
    assert all_free(engine)
