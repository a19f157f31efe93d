"""The guard in the server: what is refused, in each language, and what the models are told."""

import gc
import json
import math
import weakref
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from cierzo.guard import Guard
from cierzo.guard.classifier import CATEGORIES
from cierzo.serve.schemas import anthropic, moderation, openai_answers
from support.guards import REFLECTION, WordClassifier, policy
from support.models import tiny_config, tiny_engine
from support.server import Served, served

PROMPT = "Be kind to everyone."


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(tiny_engine(tiny_config(), max_running=8), max_waiting=16) as running:
        yield running
        assert running.until_idle(), running.engine.metrics


def _guard(server: Served, **changes: Any) -> Guard:
    guard = Guard(policy(**changes), classifier=WordClassifier())
    assert server.state is not None
    server.state.guard = guard
    server.state.judges.clear()
    return guard


def _post(server: Served, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _events(server: Served, path: str, **body: Any) -> list[Any]:
    body = {**body, "stream": True}
    text = httpx.post(f"{server.url}{path}", json=body, timeout=60).text
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


CHAT, TEXT, ANTHROPIC = "/v1/chat/completions", "/v1/completions", "/v1/messages"


def test_a_refused_question_in_openais_shape(server: Served) -> None:
    _guard(server)
    before = server.engine.metrics.steps
    answer = _post(server, CHAT, messages=_user("a vile thing"), n=2, guard_verdicts=True)
    openai_answers.ChatCompletion.model_validate(answer)
    for choice in answer["choices"]:
        assert choice["message"]["content"] == "No."
        assert choice["finish_reason"] == "content_filter"
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["guard"]["input"]["action"] == "refuse"
    assert answer["guard"]["input"]["categories"]["hate"] == 0.95
    assert answer["guard"]["output"]["action"] == "allow"
    assert server.engine.metrics.steps == before, "the model was asked"
    events = _events(server, CHAT, messages=_user("a vile thing"), guard_verdicts=True)
    for event in events[:-1]:
        openai_answers.ChatChunk.model_validate(event)
    assert events[-1] == "[DONE]"
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1]) == "No."
    assert events[-2]["choices"][0]["finish_reason"] == "content_filter"
    assert events[-2]["guard"]["input"]["action"] == "refuse"
    assert all("guard" not in e for e in events[:-2])


def test_the_verdicts_stand_in_the_usage_chunk_if_there_is_one(server: Served) -> None:
    _guard(server)
    events = _events(
        server, CHAT, messages=_user("fine"), max_tokens=3, n=2, guard_verdicts=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    assert [n for n, e in enumerate(events[:-1]) if "guard" in e] == [len(events) - 2]
    assert events[-2]["choices"] == []
    openai_answers.ChatChunk.model_validate(events[-2])


def test_a_refused_prompt_among_others_in_the_older_shape(server: Served) -> None:
    _guard(server)
    vile = list(b"so vile")
    answer = _post(server, TEXT, prompt=[[256, 65], vile, [66]], max_tokens=2, ignore_eos=True, guard_verdicts=True)
    openai_answers.Completion.model_validate(answer)
    assert [c["finish_reason"] for c in answer["choices"]] == ["length", "content_filter", "length"]
    assert answer["choices"][1]["text"] == "No."
    assert answer["guard"]["input"]["action"] == "refuse"
    events = _events(server, TEXT, prompt=["A", "so vile"], max_tokens=2, ignore_eos=True)
    reasons = {e["choices"][0]["index"]: e["choices"][0]["finish_reason"] for e in events[:-1]}
    assert reasons == {0: "length", 1: "content_filter"}


def test_a_refused_question_in_anthropics_shape(server: Served) -> None:
    _guard(server)
    asked: Any = {"model": "tiny", "max_tokens": 5, "messages": _user("a vile thing"), "guard_verdicts": True}
    answer = _post(server, ANTHROPIC, **asked)
    anthropic.AnthropicMessage.model_validate(answer)
    assert answer["stop_reason"] == "refusal"
    assert answer["content"] == [{"type": "text", "text": "No."}]
    assert answer["guard"]["input"]["action"] == "refuse"
    events = _events(server, ANTHROPIC, **asked)
    kinds = [e["type"] for e in events]
    assert kinds == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip
    assert events[-2]["delta"]["stop_reason"] == "refusal"
    assert events[-2]["guard"]["input"]["action"] == "refuse"


FORCED: Any = {"max_tokens": 400, "temperature": 0}


def _saying(text: str) -> Any:
    """What makes the random model say this: nothing else may come."""
    return {"structured_outputs": {"choice": [text]}, **FORCED}


LONG = "A good beginning of several harmless words that are shown at once. And a vile end of it, with more to come."


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_answer_ends_cleanly(server: Served, stream: bool) -> None:
    guard = _guard(server, hold=16)
    if not stream:
        answer = _post(server, CHAT, messages=_user("hello"), guard_verdicts=True, **_saying(LONG))
        [choice] = answer["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("No.", "content_filter")
        assert answer["guard"]["output"]["action"] == "refuse"
        assert 0 < answer["usage"]["completion_tokens"] < len(LONG)
    else:
        events = _events(server, CHAT, messages=_user("hello"), **_saying(LONG))
        said = "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1])
        assert said
        assert LONG.startswith(said)
        assert "vile" not in said
        assert events[-2]["choices"][0]["finish_reason"] == "content_filter"
        assert events[-1] == "[DONE]"
    assert guard.verdicts["output", "refuse"] == 1
    assert server.until_idle(), "a refused answer goes on"


def test_what_the_guard_lets_go_of_at_once_is_one_chunk(server: Served) -> None:
    """Of a token a character; every token's probability is told all the same."""
    _guard(server, hold=16)
    text = "harmless words, " * 10
    events = _events(server, CHAT, messages=_user("hello"), logprobs=True, **_saying(text))
    chunks = [e["choices"][0] for e in events[1:-1]]
    assert "".join(c["delta"].get("content", "") for c in chunks) == text
    assert sum(len(c["logprobs"]["content"]) for c in chunks if c["logprobs"]) >= len(text)
    assert len(chunks) < len(text) / 8


def test_a_refused_answer_in_anthropics_stream(server: Served) -> None:
    _guard(server, hold=16)
    schema = {"type": "object", "properties": {"a": {"const": LONG}}, "required": ["a"], "additionalProperties": False}
    events = _events(
        server, ANTHROPIC, model="tiny", messages=_user("hello"), max_tokens=400, temperature=0,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )  # fmt: skip
    assert events[-2]["delta"]["stop_reason"] == "refusal"
    assert "vile" not in json.dumps(events)


def test_several_answers_are_judged_each(server: Served) -> None:
    _guard(server, hold=16)
    answer = _post(server, CHAT, messages=_user("hello"), n=3, **_saying(LONG))
    assert [c["finish_reason"] for c in answer["choices"]] == ["content_filter"] * 3


def test_what_warns_is_told_unasked(server: Served) -> None:
    _guard(server)
    answer = _post(server, CHAT, messages=_user("how rude"), max_tokens=2)
    assert answer["guard"]["input"]["action"] == "warn"
    assert "guard" not in _post(server, CHAT, messages=_user("fine"), max_tokens=2)


def test_shadow_mode_answers_and_tells(server: Served) -> None:
    guard = _guard(server, mode="shadow", guardrail_prompt=PROMPT, guardrail_always=True)
    answer = _post(server, CHAT, messages=_user("a vile thing"), max_tokens=2, ignore_eos=True, guard_verdicts=True)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert (answer["guard"]["mode"], answer["guard"]["input"]["action"]) == ("shadow", "log")
    assert answer["usage"]["prompt_tokens"] == len("a vile thing") + 2
    assert guard.verdicts["input", "refuse"] == 1


def _prompt_of(server: Served, **body: Any) -> int:
    tokens: int = _post(server, CHAT, max_tokens=1, **body)["usage"]["prompt_tokens"]
    return tokens


def test_the_guardrail_prompt_is_there_whatever_the_messages_say(server: Served) -> None:
    assert server.state is not None
    server.state.guard = None
    plain = _prompt_of(server, messages=_user("hello"))
    _guard(server, guardrail_prompt=PROMPT, guardrail_always=True)
    assert _prompt_of(server, messages=_user("hello")) == plain + len(PROMPT) + 2
    own = [{"role": "system", "content": "Forget it."}, *_user("hello")]
    assert _prompt_of(server, messages=own) == plain + len(PROMPT + "\n\nForget it.") + 2
    assert _prompt_of(server, messages=own, safe_prompt=False) == plain + len(PROMPT + "\n\nForget it.") + 2


def test_a_finding_can_add_the_guardrail_prompt(server: Served) -> None:
    category = {"description": "x", "threshold": 0.8, "action": "prompt", "stage": "input"}
    _guard(server, guardrail_prompt=PROMPT, categories={"hate": category})
    found = _post(server, CHAT, messages=_user("a vile thing"), max_tokens=1, guard_verdicts=True)
    assert found["guard"]["input"]["action"] == "prompt"
    assert found["usage"]["prompt_tokens"] == len("a vile thing") + 2 + len(PROMPT) + 2
    assert _prompt_of(server, messages=_user("a fine thing")) == len("a fine thing") + 2


def test_safe_prompt_works_without_a_guard(server: Served) -> None:
    assert server.state is not None
    server.state.guard = None
    plain = _prompt_of(server, messages=_user("hello"))
    assert _prompt_of(server, messages=_user("hello"), safe_prompt=True) > plain + 50
    assert _prompt_of(server, messages=_user("hello"), safe_prompt=False) == plain
    answer = _post(server, CHAT, messages=_user("a vile thing"), max_tokens=1, guard_verdicts=True)
    assert answer["guard"] is None


def test_the_served_model_judges_by_its_own_probabilities(server: Served) -> None:
    """A random model has an opinion too: the same as its scores of the letters after the question give."""
    guard = _guard(server, reflection=REFLECTION)
    answer = _post(server, CHAT, messages=_user("a murky thing"), max_tokens=1, guard_verdicts=True)
    assert guard.reflections >= 1
    given = answer["guard"]["input"]
    assert 0 <= given["reflection"] <= 1
    assert given["action"] == ("refuse" if given["reflection"] >= 0.5 else "allow")
    ids = [256, *b"a murky thing", 258, 258, 256, *REFLECTION["question"].encode(), 258]

    def scored(letter: bytes) -> float:
        """The probability of the letter after the question, as evaluation tools ask for it."""
        echoed = _post(server, TEXT, prompt=[*ids, *letter], max_tokens=0, echo=True, logprobs=0)
        return math.exp(echoed["choices"][0]["logprobs"]["token_logprobs"][-1])

    a, b = scored(b"A"), scored(b"B")
    assert given["reflection"] == pytest.approx(b / (a + b), rel=1e-3)


def test_a_judge_keeps_no_model_that_is_unloaded() -> None:
    with served(tiny_engine(tiny_config())) as server:
        guard = _guard(server, reflection=REFLECTION)
        _post(server, CHAT, messages=_user("a murky thing"), max_tokens=1)
        assert guard.reflections
        assert server.state is not None
        assert len(server.state.judges) == 1
        model = weakref.ref(server.llm)
    del server.llm
    gc.collect()
    assert model() is None


def test_a_full_context_leaves_the_first_stage(server: Served) -> None:
    _guard(server, reflection=REFLECTION)
    prompt = [256, *b"murky ", *b"x " * 2040]
    answer = _post(server, TEXT, prompt=prompt, max_tokens=1, ignore_eos=True, guard_verdicts=True)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert "tokens" in answer["guard"]["input"]["error"]


@pytest.mark.parametrize(("on_error", "reason"), [("allow", "length"), ("refuse", "content_filter")])
def test_a_guard_that_fails(server: Served, on_error: str, reason: str) -> None:
    guard = _guard(server, on_error=on_error)
    answer = _post(server, CHAT, messages=_user("crash"), max_tokens=1, ignore_eos=True, guard_verdicts=True)
    assert answer["choices"][0]["finish_reason"] == reason
    assert "the classifier broke" in answer["guard"]["input"]["error"]
    text = httpx.get(f"{server.url}/metrics", timeout=10).text
    assert 'cierzo:guard_errors_total{mode="enforce",policy="test"} 1.0' in text
    assert guard.errors == 1


def test_health_and_metrics_name_the_guard(server: Served) -> None:
    _guard(server)
    assert httpx.get(f"{server.url}/health", timeout=10).json() == {
        "status": "ok", "guard": {"policy": "test", "mode": "enforce"},
    }  # fmt: skip
    _post(server, CHAT, messages=_user("a vile thing"))
    text = httpx.get(f"{server.url}/metrics", timeout=10).text
    assert 'cierzo:guard_verdicts_total{action="refuse",mode="enforce",policy="test",stage="input"} 1.0' in text
    assert server.state is not None
    server.state.guard = None
    assert httpx.get(f"{server.url}/ready", timeout=10).json() == {"status": "ok"}


def test_moderations_with_the_real_client(server: Served) -> None:
    _guard(server)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answer = client.moderations.create(input=["a vile thing", "a fine thing"], model="omni-moderation-latest")
    assert [result.flagged for result in answer.results] == [True, False]
    assert answer.results[0].categories.hate
    assert answer.results[0].category_scores.hate == 0.95
    raw = _post(server, "/v1/moderations", input=[{"type": "text", "text": "so"}, {"type": "text", "text": "vile"}])
    [one] = moderation.Moderation.model_validate(raw).results
    assert one.flagged
    assert set(one.categories) == set(one.category_scores) == set(CATEGORIES)
    assert server.state is not None
    server.state.guard = None
    assert not client.moderations.create(input="What is the capital of France?").results[0].flagged
    for wrong in ([], ["x"] * 129, [{"type": "image_url", "image_url": {"url": "x"}}]):
        refused = httpx.post(f"{server.url}/v1/moderations", json={"input": wrong}, timeout=10)
        assert refused.status_code == 400


def test_a_continued_answer_is_judged_and_guarded(server: Served) -> None:
    _guard(server, guardrail_prompt=PROMPT, guardrail_always=True)
    begun = [*_user("hello"), {"role": "assistant", "content": "Sure, "}]
    options = {"continue_final_message": True, "max_tokens": 1, "ignore_eos": True}
    answer = _post(server, CHAT, messages=begun, **options)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["prompt_tokens"] == len(PROMPT) + 2 + len("hello") + 2 + len("Sure, ")
    begun[-1]["content"] = "Sure, a vile"
    assert _post(server, CHAT, messages=begun, **options)["choices"][0]["finish_reason"] == "content_filter"
