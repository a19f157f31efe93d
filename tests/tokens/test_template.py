"""Templates come from strangers: what they may do, and for how long."""

import time
from typing import Any

import pytest

from cierzo.tokens import ChatError
from cierzo.tokens.messages import checked
from cierzo.tokens.template import ControlTokens, JinjaTemplate, Llama2Template

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]


def render(source: str, messages: list[dict[str, Any]] = HELLO, tools: list[dict[str, Any]] | None = None) -> str:
    pieces = JinjaTemplate(source, {"<c>": 1}, {"bos_token": "<c>", "eos_token": ""}).pieces(messages, tools)
    return "".join("<c>" if piece == 1 else str(piece) for piece in pieces)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "more than 5 s"),
        ("{{ 'x' * 10 ** 10 }}", "MB"),
        ("{% set n = namespace(x='x') %}{% for a in range(50) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "MB"),
        ("{{ '%9999999999d' % 1 }}", "MB"),
        ("{{ 'x' * 10 ** 8 }}", "it wrote 100000000 characters"),
        ("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}", "recursion|nested|MB"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "TypeError|no loader"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ raise_exception('not for you') }}", "refuses: not for you"),
        ("{{ nothing.at.all }}", "UndefinedError"),
    ],
)
def test_absurd_templates_end_in_bounded_time_and_memory(source: str, says: str) -> None:
    started = time.monotonic()
    with pytest.raises(ChatError, match=says):
        render(source)
    assert time.monotonic() - started < 15


def test_after_a_template_was_ended_the_next_chat_works() -> None:
    template = JinjaTemplate("{% if messages|length > 1 %}{{ 'x' * 10 ** 10 }}{% endif %}fine", {}, {})
    with pytest.raises(ChatError):
        template.pieces([*HELLO, {"role": "assistant", "content": "x"}], None)
    assert template.pieces(HELLO, None) == ["fine"]


def test_what_transformers_gives_to_templates_is_there() -> None:
    source = (
        "{%- for m in messages %}\n    {%- if loop.first %}{% continue %}{% endif %}\n"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        "{{ {'ü': '<&>'} | tojson }}{{ strftime_now('%Y') | length }}{{ tools | length }}"
    )
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert render(source, [*HELLO, *HELLO], tools) == 'Hello{"ü": "<&>"}41'


def test_tool_arguments_are_mappings_for_templates() -> None:
    call: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [*HELLO, {"role": "assistant", "tool_calls": [call]}]
    source = "{{ tools }}{{ messages[1].tool_calls[0].function.arguments.a }}"
    assert render(source, messages) == "None1"
    call["function"] = {"name": "f", "arguments": "{"}
    with pytest.raises(ChatError, match="no JSON"):
        render(source, messages)


def test_marks_leave_no_trace_in_the_text() -> None:
    controls = ControlTokens({"<|a|>": 1, "<|a|>b": 2})
    for text in ["<|a|>", "x<|a|>b<|a", "<", "<|a|><|a|>", "\ufffc\u2060\ufffc", "plain"]:
        assert "".join(map(str, controls.split(controls.broken(text)))) in (text, "")
    assert controls.split("<|a|>b<|a|>") == [2, 1]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "at least one message"),
        (["Hello"], "must be a mapping"),
        ([{"role": "boss", "content": "x"}], "role 'boss'"),
        ([{"role": "user"}], "no content"),
        ([{"role": "user", "content": 3}], "must be text, not int"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "type 'image_url'"),
        ([{"role": "assistant", "tool_calls": [{}]}], "without a function name"),
    ],
)
def test_messages_that_are_none_are_refused(messages: list[Any], says: str) -> None:
    with pytest.raises(ChatError, match=says):
        checked(messages)


def test_llama_2() -> None:
    template = Llama2Template(bos_id=1, eos_id=2)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi "},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "And"},
        {"role": "user", "content": "now?"},
    ]
    assert template.pieces(chat, None) == [
        1, "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello ", 2, 1, "[INST] And\n\nnow? [/INST]",
    ]  # fmt: skip
    with pytest.raises(ChatError, match="in turns"):
        template.pieces(chat[:3], None)
    with pytest.raises(ChatError, match="in turns"):
        template.pieces(chat[:1], None)
