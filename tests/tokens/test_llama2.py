"""Llama 2's chats: ids as its own code makes them, and as the template published with it does.

The vocabulary is Mistral's v1, a SentencePiece model of 32,000 pieces with Llama's control tokens.
"""

import itertools
from pathlib import Path
from typing import Any

import mistral_common
import pytest
from sentencepiece import SentencePieceProcessor

from cierzo.tokens import ChatError, Tokenizer, load_tokenizer

MODEL = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
TEXTS = [
    "Hello",
    "",
    "  two  spaces ",
    "Ünïcödé, 日本語, 👩‍👩‍👧 e\u0301",
    "line\n\nbreak\t",
    "</s>[INST] <s> [/INST] <<SYS>>",
]
# As published, with a system prompt put into the first question.
TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set said = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set said = messages %}{% set system = false %}{% endif %}"
    "{% for m in said %}"
    "{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama-2")
    (path / "tokenizer.model").write_bytes(MODEL.read_bytes())
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return load_tokenizer(folder, "llama-2")


@pytest.fixture(scope="module")
def library() -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(MODEL))


def conversations() -> list[list[tuple[str, str]]]:
    turns = [[("user", a), ("assistant", b), ("user", c)] for a, b, c in itertools.product(TEXTS[:4], TEXTS, TEXTS[:3])]
    single = [[("user", text)] for text in TEXTS]
    return [[*system, *chat] for chat in single + turns for system in ([], [("system", "Be brief. 短く。 ")])]


def originals(library: SentencePieceProcessor, chat: list[tuple[str, str]]) -> list[int]:
    """Llama 2's own `chat_completion`, written again: each question with its answer is encoded by itself."""
    if chat[0][0] == "system":
        asked = f"<<SYS>>\n{chat[0][1]}\n<</SYS>>\n\n{chat[1][1]}"
        chat = [("user", asked), *chat[2:]]
    texts = [text.strip() for _, text in chat]
    ids: list[int] = []
    for prompt, answer in zip(texts[::2], texts[1::2], strict=False):
        ids += [1, *library.encode(f"[INST] {prompt} [/INST] {answer} "), 2]
    return [*ids, 1, *library.encode(f"[INST] {texts[-1]} [/INST]")]


def as_messages(chat: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in chat]


def test_chats_have_the_ids_of_the_original_code(ours: Tokenizer, library: SentencePieceProcessor) -> None:
    for chat in conversations():
        assert ours.encode_chat(as_messages(chat)) == originals(library, chat), chat


def test_chats_have_the_ids_of_transformers(ours: Tokenizer) -> None:
    """Of the template's text between control tokens: one text in which they are spelled would be open to forgery."""
    from transformers.utils.chat_template_utils import render_jinja_template

    for chat in conversations():
        if any("</s>" in text for _, text in chat):
            continue
        names: Any = {"bos_token": "<s>", "eos_token": "</s>"}
        rendered: Any = render_jinja_template([as_messages(chat)], chat_template=TEMPLATE, **names)
        expected: list[int] = []
        for turn in rendered[0][0].split("<s>")[1:]:
            text, end, _ = turn.partition("</s>")
            expected += [1, *ours.encode(text), *([2] if end else [])]
        assert ours.encode_chat(as_messages(chat)) == expected, chat


def test_its_own_template_gives_the_same(folder: Path, ours: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(TEMPLATE)
    jinja = load_tokenizer(folder, str(file))
    for chat in conversations():
        assert jinja.encode_chat(as_messages(chat)) == ours.encode_chat(as_messages(chat)), chat


def test_consecutive_roles_are_merged_and_tools_refused(ours: Tokenizer) -> None:
    twice = as_messages([("user", "a"), ("user", "b")])
    assert ours.encode_chat(twice) == ours.encode_chat(as_messages([("user", "a\n\nb")]))
    with pytest.raises(ChatError, match="no place for tools"):
        ours.encode_chat(twice, [{"type": "function", "function": {"name": "f"}}])
