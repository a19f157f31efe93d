"""Tool calls read out of answers, however the answers are cut into tokens."""

import json
from itertools import pairwise
from pathlib import Path

import mistral_common
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cierzo.engine import Completion, Engine, SamplingParams
from cierzo.engine.request import ToolCallDelta, _whole_calls
from cierzo.engine.tools import ToolCallParser
from cierzo.tokens import ToolFormat
from cierzo.tokens.mistral import MistralTokenizer
from cierzo.tokens.template import CHATML, JinjaTemplate
from support.models import ByteTokenizer, tiny_config, tiny_model

MISTRAL = ToolFormat("mistral", frozenset([5]))
APART = ToolFormat("mistral-arguments", frozenset([5]), frozenset([6]))
CHATML_TOOLS = ToolFormat("chatml")
DATA = Path(mistral_common.__file__).parent / "data"

Item = str | int


def parsed(form: ToolFormat, items: list[Item]) -> tuple[str, list[tuple[str, str]], list[ToolCallDelta]]:
    """Text, calls (name and arguments) and deltas of an answer of texts and control tokens."""
    parser, text = ToolCallParser(form), ""
    deltas: list[ToolCallDelta] = []
    for item in items:
        token = item if isinstance(item, int) else 99
        shown, calls = parser.push(item if isinstance(item, str) else "", token, last=False)
        text += shown
        deltas += calls
    shown, calls = parser.push("", None, last=True)
    return text + shown, [(c.name, c.arguments) for c in _whole_calls([*deltas, *calls])], [*deltas, *calls]


def cut(text: str, places: list[int]) -> list[Item]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(edges)]


CALLS = [("get_weather", {"city": "Zaragoza", "when": ["now", {"a": '}]"\\'}]}), ("now", {}), ("été", {"ñ": "日本"})]
PLACES = st.lists(st.integers(0, 10_000), max_size=40)


def written(ascii: bool, indent: int | None = None) -> list[str]:
    return [json.dumps({"name": n, "arguments": a}, ensure_ascii=ascii, indent=indent) for n, a in CALLS]


EXPECTED = [(name, arguments) for name, arguments in CALLS]


def loaded(calls: list[tuple[str, str]]) -> list[tuple[str, object]]:
    return [(name, json.loads(arguments)) for name, arguments in calls]


@given(PLACES, st.booleans(), st.sampled_from([None, 2]))
def test_mistrals_list_of_calls(places: list[int], ascii: bool, indent: int | None) -> None:
    text, calls, deltas = parsed(
        MISTRAL, ["Let me see. ", 5, *cut(" [" + ", ".join(written(ascii, indent)) + "]", places)]
    )
    assert text == "Let me see. "
    assert loaded(calls) == EXPECTED
    assert [d.index for d in deltas if d.id] == [0, 1, 2]
    assert all(len(d.id) == 9 and d.id.isalnum() for d in deltas if d.id)


@given(PLACES)
def test_names_and_arguments_apart(places: list[int]) -> None:
    items: list[Item] = ["Well: "]
    for name, arguments in CALLS:
        items += [5, *cut(name, places), 6, *cut(json.dumps(arguments), places)]
    text, calls, _ = parsed(APART, items)
    assert text == "Well: "
    assert loaded(calls) == EXPECTED


@given(PLACES, st.booleans())
def test_chatml(places: list[int], one_list: bool) -> None:
    bodies = ["[" + ",".join(written(False)) + "]"] if one_list else written(False)
    answer = "I look. " + "".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies) + " Done <tool."
    text, calls, _ = parsed(CHATML_TOOLS, cut(answer, places))
    assert text == "I look.  Done <tool."
    assert loaded(calls) == EXPECTED


def test_chatml_with_control_tokens() -> None:
    form = ToolFormat("chatml", frozenset([7]), end=frozenset([8]))
    text, calls, _ = parsed(form, ["a", 7, written(True)[0], 8, "b", 7, written(True)[1], 8])
    assert (text, loaded(calls)) == ("ab", EXPECTED[:2])


@given(PLACES)
def test_what_is_no_call_stays_text(places: list[int]) -> None:
    for body in ("{not json", '{"function": "f"}', "nothing", '{"name": 3}'):
        text, calls, _ = parsed(CHATML_TOOLS, cut(f"so <tool_call>{body}</tool_call>!", places))
        assert calls == []
        assert body in text
    assert parsed(MISTRAL, [5, *cut("[1, 2]", places)])[1] == []


def test_arguments_come_as_they_are_written() -> None:
    parser = ToolCallParser(MISTRAL)
    parser.push("", 5, last=False)
    pieces = ['[{"name": "f", ', '"arguments": {"a": ', "1", ', "b": "', 'x"}', "}]"]
    got = [parser.push(piece, 99, last=False)[1] for piece in pieces]
    assert [d.name for d in got[0]] == ["f"]
    assert ["".join(d.arguments for d in calls) for calls in got] == ["", '{"a": ', "1", ', "b": "', 'x"}', ""]


def test_other_orders_and_spellings() -> None:
    one = '{"arguments": {"a": 1}, "name": "f", "id": "call_1"}'
    two = '{"id": "abc", "name": "g", "arguments": "{\\"b\\": 2}"}'
    three = '{"name": "h"}, {"name": "i", "arguments": null}, {"name": ' + "[" * 100_000 + "]" * 100_000 + "}"
    _, calls, deltas = parsed(MISTRAL, [5, f"[{one}, {two}, {three}]"])
    assert calls == [("f", '{"a": 1}'), ("g", '{"b": 2}'), ("h", "{}"), ("i", "{}")]
    assert [d.id for d in deltas if d.id][1] == "abc"


def test_a_cut_answer_keeps_what_was_written() -> None:
    _, calls, _ = parsed(MISTRAL, [5, '[{"name": "f", "arguments": {"a": [1, '])
    assert calls == [("f", '{"a": [1, ')]


@pytest.mark.parametrize(
    ("file", "begin"),
    [
        ("tokenizer.model.v1", None),
        ("mistral_instruct_tokenizer_240323.model.v3", 5),
        ("mistral_instruct_tokenizer_241114.model.v7", 5),
        ("tekken_240911.json", 9),
    ],
)
def test_mistrals_tokenizers_say_how_calls_are_written(file: str, begin: int | None) -> None:
    form = MistralTokenizer(DATA / file, instruct=True).tool_format
    assert form == (None if begin is None else ToolFormat("mistral", frozenset([begin])))
    assert MistralTokenizer(DATA / file, instruct=False).tool_format is None


def test_templates_say_how_calls_are_written() -> None:
    controls = {"<|im_start|>": 1, "<|im_end|>": 2, "[TOOL_CALLS]": 9, "<tool_call>": 4, "</tool_call>": 5}
    assert JinjaTemplate(CHATML, controls, {}).tool_format is None
    hermes = CHATML + "{% if tools %}{{ tools | tojson }}{% endif %}"
    without = {name: token for name, token in controls.items() if "TOOL" not in name}
    assert JinjaTemplate(hermes, without, {}).tool_format == ToolFormat("chatml", frozenset([4]), end=frozenset([5]))
    assert JinjaTemplate(hermes, {"<|im_end|>": 2}, {}).tool_format == CHATML_TOOLS
    assert JinjaTemplate(hermes, controls, {}).tool_format == ToolFormat("mistral", frozenset([9]))


@pytest.mark.parametrize("stop", [(), ("right",), ("some",)])
def test_text_held_back_for_a_stop_text_stays_before_the_control_token(stop: tuple[str, ...]) -> None:
    class Tokens(ByteTokenizer):
        tool_format = ToolFormat("mistral-arguments", frozenset([258]), frozenset([259]))  # type: ignore[assignment]

    engine = Engine(tiny_model(tiny_config()), Tokens(), max_seq_len=200, cache_tokens=200)
    sequence = engine.prepare([1], SamplingParams(stop=stop), tools=True)
    for token in [*b"it is so", 258, *b"get_weather", 259, *b'{"a":1}', 257]:
        sequence.accept(token, None, token == 257)
    answer = Completion.of(sequence.deltas)
    assert answer.text == "it is so"
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [("get_weather", '{"a":1}')]


def test_text_before_a_call_and_half_characters_are_not_lost() -> None:
    call = '{"name": "a\\ud800b", "arguments": {}}'
    for places in ([], list(range(60))):
        text, calls, _ = parsed(CHATML_TOOLS, cut(f"<tool_call>Let me see: {call}</tool_call>", places))
        assert text == "Let me see: "
        assert calls == [("a�b", "{}")]
