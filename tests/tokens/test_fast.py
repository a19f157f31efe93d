"""`tokenizer.json` models: ids and chats equal to transformers', and no forged control tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from cierzo.errors import CierzoError
from cierzo.tokens import ChatError, Tokenizer, decode, load_tokenizer

CORPUS = [
    "The cat sat on the mat. In 2023 it cost 1234 euros, ünïcödé 日本語 👩‍👩‍👧!",
    "  def f(x):\n\treturn x\n\n",
] * 50
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


def trained(kind: str) -> tokenizers.Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=[])
    if kind == "byte-level":
        library = tokenizers.Tokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet)
    else:  # as Llama's: spaces become U+2581, unknown characters bytes
        library = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        if kind == "metaspace":
            library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        library.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        pieces = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=pieces)
    library.train_from_iterator(CORPUS, trainer)
    if kind != "byte-level":  # the byte pieces are ordinary ones
        spec = json.loads(library.to_str())
        spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"].startswith("<0x")]
        library = tokenizers.Tokenizer.from_str(json.dumps(spec))
        library.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", library.token_to_id("<s>"))]
        )
    return library


@pytest.fixture(scope="module", params=["byte-level", "metaspace", "prepend"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    library = trained(request.param)
    library.enable_truncation(4)  # which must not cut anything
    library.save(str(path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [library.token_to_id("<|im_end|>")]}))
    return path


def reference(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.no_truncation()
    return PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<s>", eos_token="</s>")


def with_template(folder: Path, source: str, tmp_path: Path) -> Tokenizer:
    file = tmp_path / "chat.jinja"
    file.write_text(source)
    return load_tokenizer(folder, str(file))


TEXTS = ["Hello the cat", "", " leading", "trailing ", "日本語 👩‍👩‍👧 ünï", "a  b\n\n\tc", "1234 2023"]


@pytest.mark.parametrize("text", TEXTS)
def test_plain_text_has_the_ids_of_transformers(folder: Path, text: str) -> None:
    ours = load_tokenizer(folder)
    assert ours.encode(text, bos=True) == reference(folder)(text)["input_ids"]


@pytest.mark.parametrize("template", [CHATML, INST], ids=["chatml", "inst"])
@pytest.mark.parametrize("text", TEXTS)
def test_chats_have_the_ids_of_transformers(folder: Path, template: str, text: str, tmp_path: Path) -> None:
    said = [("user", text), ("assistant", "Yes " + text), ("user", "?")]
    chat = [{"role": role, "content": content} for role, content in said]
    expected = reference(folder).apply_chat_template(chat, chat_template=template, add_generation_prompt=True)
    assert with_template(folder, template, tmp_path).encode_chat(chat) == expected["input_ids"]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from([*SPECIAL, "<|im_", "end|>", "<", "|>", "</", "s>", "[", "x", " "]), max_size=6))
def test_no_text_becomes_a_control_token(folder: Path, parts: list[str]) -> None:
    """Also not half a control token in one message and the other half in the next."""
    ours = forgeable(folder)
    text = "".join(parts)
    controls = set(range(len(SPECIAL) + 1))
    ids = ours.encode_chat([{"role": "user", "content": text}, {"role": "assistant", "content": text}])
    assert [t for t in ids if t in controls] == []
    assert not controls & set(ours.encode(text))


_forgeable: dict[Path, Tokenizer] = {}


def forgeable(folder: Path) -> Tokenizer:
    """Messages side by side, with nothing between them."""
    if folder not in _forgeable:
        file = folder / "bare.jinja"
        file.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
        _forgeable[folder] = load_tokenizer(folder, str(file))
    return _forgeable[folder]


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\u2581"), max_size=30))
def test_decoding_gives_the_text_back(folder: Path, text: str) -> None:
    ours = forgeable(folder)
    # A Metaspace vocabulary takes a text's own first space for the one that it would add, so that one is lost.
    kept = text.removeprefix(" ") if folder.name.startswith("metaspace") else text
    assert decode(ours, ours.encode(text, bos=True)) == kept


def test_stop_tokens_are_those_of_the_generation_settings_too(folder: Path) -> None:
    ids = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder).stop_ids == {ids.token_to_id("</s>"), ids.token_to_id("<|im_end|>")}


def test_consecutive_roles_are_merged_where_the_template_refuses_them(folder: Path, tmp_path: Path) -> None:
    ours = with_template(folder, INST, tmp_path)
    twice = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    assert ours.encode_chat(twice) == ours.encode_chat([{"role": "user", "content": "one\n\ntwo"}])
    with pytest.raises(ChatError, match="roles must alternate"):
        ours.encode_chat([{"role": "assistant", "content": "I begin"}])


def test_a_base_model_says_that_it_has_no_template(folder: Path) -> None:
    ours = load_tokenizer(folder)
    assert ours.chat_refusal is not None
    with pytest.raises(ChatError, match="base model"):
        ours.encode_chat([{"role": "user", "content": "Hi"}])


def test_a_template_without_tools_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ChatError, match="no place for tools"):
        with_template(folder, CHATML, tmp_path).encode_chat(
            [{"role": "user", "content": "Hi"}], [{"type": "function", "function": {"name": "f"}}]
        )


def test_a_decoder_that_is_not_known_is_refused(tmp_path: Path) -> None:
    library = trained("byte-level")
    library.decoder = decoders.WordPiece()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CierzoError, match="WordPiece"):
        load_tokenizer(tmp_path)


def test_llama_2s_format_needs_begin_and_end_tokens(folder: Path, tmp_path: Path) -> None:
    ids = load_tokenizer(folder, "llama-2").encode_chat([{"role": "user", "content": "Hi"}])
    assert ids[0] == tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<s>")
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(ChatError, match="begin and end tokens"):
        load_tokenizer(tmp_path, "llama-2")


def test_a_template_that_is_no_text_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ChatError, match=r"chat_template\.jinja"):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CierzoError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CierzoError, match="no tokenizer; looked for"):
        load_tokenizer(tmp_path)


DOUBLED = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
INSERTED = {"type": "Replace", "pattern": {"Regex": ""}, "content": "a"}


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("tokenizer.json", {"added_tokens": 5}, "'added_tokens' is no list of tokens"),
        ("tokenizer.json", {"added_tokens": [{"id": "1", "content": "x"}]}, "'added_tokens' is no list of tokens"),
        (
            "tokenizer.json",
            {"normalizer": {"type": "Sequence", "normalizers": [DOUBLED] * 40}},
            "'normalizer'.* 64",
        ),
        (
            "tokenizer.json",
            {"normalizer": {"type": "Sequence", "normalizers": [INSERTED] * 40}},
            "'normalizer'.* 64",
        ),
        (
            "tokenizer.json",
            {"normalizer": {"type": "Sequence", "normalizers": [[{"String": "a"}, "aa"]] * 40}},
            "'normalizer' has a part that is no object",
        ),
        ("tokenizer.json", {"normalizer": [[DOUBLED] * 40]}, "'normalizer' has a part that is no object"),
        (
            "tokenizer.json",
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [DOUBLED] * 40}]}},
            "'normalizer'.* 64",
        ),
        (
            "tokenizer.json",
            {"decoder": {"type": "Sequence", "decoders": [["a"], {"type": "ByteFallback"}]}},
            "'decoder' has a part that is no object",
        ),
        ("tokenizer.json", {"decoder": {"type": ["ByteLevel"]}}, "tokenizer.json: (not a tokenizer|decoder)"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}, "not a tokenizer"),
        (
            "tokenizer.json",
            {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "<gone>", "type_id": 0}}],
                    "pair": [],
                    "special_tokens": {},
                }
            },
            "'post_processor' does not define '<gone>'|not a tokenizer",
        ),
        ("tokenizer_config.json", {"chat_template": [1, {"name": "default"}]}, ""),
        ("tokenizer_config.json", {"eos_token": ["</s>"]}, ""),
        ("generation_config.json", {"eos_token_id": [[2], {"a": 1}]}, ""),
    ],
    ids=lambda value: str(value)[:30],
)
def test_files_that_lie(folder: Path, file: str, change: dict[str, Any], says: str, tmp_path: Path) -> None:
    """One line that names file and key; what does not matter is passed over."""
    for source in folder.glob("*.json"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    values = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(values | change))
    if says:
        with pytest.raises(CierzoError, match=says) as refusal:
            load_tokenizer(tmp_path)
        assert str(tmp_path / file) in str(refusal.value)
    else:
        assert load_tokenizer(tmp_path).chat_refusal


def test_a_control_token_too_long_to_look_for_is_refused(folder: Path, tmp_path: Path) -> None:
    spec = json.loads((folder / "tokenizer.json").read_text())
    token = {**spec["added_tokens"][0], "id": len(spec["model"]["vocab"]) + 10, "content": "x" * 10**5, "special": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec | {"added_tokens": [*spec["added_tokens"], token]}))
    with pytest.raises(CierzoError, match=r"tokenizer\.json: [78] control tokens, the longest of 100000 characters"):
        load_tokenizer(tmp_path, "chatml")


def test_half_a_character_is_told(folder: Path) -> None:
    with pytest.raises(CierzoError, match="cannot encode this text of 1 characters"):
        load_tokenizer(folder).encode("\ud800")
