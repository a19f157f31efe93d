"""Messages, settings and files of a chat, without a terminal."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cierzo import SamplingParams
from cierzo.cli.conversation import FORMAT, SETTINGS, Conversation
from cierzo.errors import CierzoError
from support.fake_llm import FakeLLM


def chat(llm: FakeLLM | None = None, system: str | None = None) -> Conversation:
    return Conversation(llm or FakeLLM(), SamplingParams(), system)


def answer(conversation: Conversation, text: str) -> str:
    return "".join(delta.text for delta in conversation.ask(text))


def test_each_question_carries_the_conversation() -> None:
    llm = FakeLLM()
    conversation = chat(llm, system="Be brief.")
    assert answer(conversation, "Hi") == "Hello there"
    answer(conversation, "Again")
    assert llm.asked[1] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello there"},
        {"role": "user", "content": "Again"},
    ]


def test_a_stopped_answer_keeps_what_was_said_and_cancels_the_request() -> None:
    llm = FakeLLM(["one", " two", " three"])
    conversation = chat(llm)
    deltas = conversation.ask("Count")
    next(deltas), next(deltas)
    deltas.close()
    assert [m["content"] for m in conversation.turns] == ["Count", "one two"]
    assert conversation.last is not None
    assert (conversation.last.tokens, conversation.last.finish_reason) == (2, None)
    assert llm.cancelled == 1


def test_a_question_without_an_answer_is_forgotten() -> None:
    conversation = chat(FakeLLM(fails="too long"))
    with pytest.raises(CierzoError, match="too long"):
        answer(conversation, "Hi")
    assert conversation.turns == []


def test_reset_keeps_the_system_prompt_and_the_settings() -> None:
    conversation = chat(system="Be brief.")
    conversation.set("top_k", "5")
    answer(conversation, "Hi")
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]
    assert conversation.settings.top_k == 5
    assert conversation.context_used() == 0


def test_context_used_counts_the_template_and_the_answer() -> None:
    conversation = chat()
    answer(conversation, "Hi")
    assert conversation.context_used() == len("Hi") + 2 + len("Hello there")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("temperature", "0", 0),
        ("top_p", "0.5", 0.5),
        ("seed", "none", None),
        ("max_tokens", "20", 20),
        ("stop", "END", ("END",)),
        ("stop", '["a", "b"]', ("a", "b")),
        ("stop", "none", ()),
    ],
)
def test_set(key: str, text: str, value: object) -> None:
    conversation = chat()
    conversation.set(key, text)
    assert getattr(conversation.settings, key) == value


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        ("temperature", "warm", "temperature must be"),
        ("temperature", "-1", "temperature must be"),
        ("temperature", "NaN", "temperature must be"),
        ("top_k", "2.5", "top_k must be"),
        ("top_k", "[1]", "top_k must be"),
        ("stop", "5", "stop must be"),
        ("stop", "[5]", "stop must be"),
        ("heat", "1", "no setting 'heat'"),
        ("logit_bias", "{}", "no setting 'logit_bias'"),
    ],
)
def test_set_refuses(key: str, text: str, reason: str) -> None:
    conversation = chat()
    before = conversation.settings
    with pytest.raises(CierzoError, match=reason):
        conversation.set(key, text)
    assert conversation.settings is before


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(system=st.none() | texts, said=st.lists(st.tuples(texts, texts.filter(bool)), max_size=4), stop=texts)
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, system: str | None, said: list[tuple[str, str]], stop: str
) -> None:
    path = tmp_path_factory.mktemp("chat") / "chat.json"
    llm = FakeLLM()
    conversation = Conversation(llm, SamplingParams(temperature=0.25, seed=3, stop=(stop,) if stop else ()), system)
    for question, reply in said:
        llm.pieces = [reply]
        answer(conversation, question)
    conversation.save(path)
    other = chat()
    assert other.load(path) == "fake"
    assert (other.messages, other.settings) == (conversation.messages, conversation.settings)


def test_save_replaces_a_saved_chat_but_no_other_file(tmp_path: Path) -> None:
    conversation = chat()
    conversation.save(tmp_path / "chat.json")
    answer(conversation, "Hi")
    conversation.save(tmp_path / "chat.json")
    assert "Hello there" in (tmp_path / "chat.json").read_text()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CierzoError, match=r"notes\.txt is not a chat"):
        conversation.save(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chat.json", "notes.txt"]


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = chat()
    path = tmp_path / "chat.json"
    conversation.save(path)
    before = path.read_text()

    def full(part: Path, data: bytes) -> None:
        part.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CierzoError, match="No space left"):
        conversation.save(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_save_names_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CierzoError, match=r"cannot write .*chat\.json: No such file"):
        chat().save(tmp_path / "none" / "chat.json")


GOOD: dict[str, Any] = {
    "format": FORMAT,
    "model": "fake",
    "settings": {"temperature": 0.5},
    "messages": [{"role": "user", "content": "Hi"}],
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "other"}, "is not a chat"),
        ({"settings": []}, "settings"),
        ({"settings": {"heat": 1}}, "unknown setting 'heat'"),
        ({"settings": {"temperature": "hot"}}, "temperature must be"),
        ({"settings": {"stop": 5}}, "stop must be"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "message 0 must have exactly"),
        ({"messages": [{"role": "user"}]}, "message 0 must have exactly"),
        ({"messages": [{"role": "tool", "content": ""}]}, "message 0 has role 'tool'"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "message 1 has role"),
        ({"messages": [{"role": "user", "content": 5}]}, "content of message 0"),
    ],
)
def test_load_refuses_and_changes_nothing(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(GOOD | change))
    conversation = chat(system="Mine")
    answer(conversation, "Hi")
    before = (conversation.messages, conversation.settings)
    with pytest.raises(CierzoError, match=reason) as raised:
        conversation.load(path)
    assert "chat.json" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (conversation.messages, conversation.settings) == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
def test_load_refuses_what_is_no_json_object(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "chat.json").write_bytes(content)
    with pytest.raises(CierzoError, match="is not a chat"):
        chat().load(tmp_path / "chat.json")


def test_load_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CierzoError, match=r"cannot read .*none\.json: No such file"):
        chat().load(tmp_path / "none.json")


def test_settings_are_fields_of_sampling_params() -> None:
    assert set(SETTINGS) <= set(SamplingParams.__dataclass_fields__)
