"""Finds the tokenizer and the chat template that come with a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cierzo.errors import WeightsError
from cierzo.tokens.gguf import Vocabulary, gguf_tokenizer
from cierzo.tokens.interface import ChatError, Tokenizer
from cierzo.tokens.template import ChatTemplate, JinjaTemplate, Llama2Template, template_source
from cierzo.weights import read_metadata
from cierzo.weights.source import gguf_file, read_json

_LONGEST_CONTROL, _MOST_CONTROLS = 256, 16_384


def load_tokenizer(path: Path, chat_template: str | None = None) -> Tokenizer:
    """The tokenizer of a GGUF file or a model folder.

    Args:
        chat_template: None for the model's own; "none", "chatml", "llama-2", "mistral" or a Jinja file for another.

    Raises:
        WeightsError: no tokenizer, or one that cannot be read.
    """
    file = gguf_file(path)
    if file is not None:
        vocabulary = Vocabulary(file, read_metadata(file))
        return gguf_tokenizer(vocabulary, _gguf_template(vocabulary, chat_template))
    if chat_template == "mistral" or _is_mistral(path):
        return _mistral(path, chat_template)
    if (path / "tokenizer.json").is_file():
        return _from_json(path, chat_template)
    if (path / "tokenizer.model").is_file():
        return _from_sentencepiece(path, chat_template)
    raise WeightsError(
        f"{path}: no tokenizer; looked for tekken.json, tokenizer.model.v*, tokenizer.json and tokenizer.model"
    )


def _template(
    path: Path, source: str | None, chosen: str | None, controls: Mapping[str, int], names: Mapping[str, str]
) -> ChatTemplate | None:
    """The template `chosen`, or the model's own `source`; `path`: the vocabulary, for messages."""
    if chosen == "none" or (chosen is None and source is None):
        return None
    if chosen == "llama-2":
        bos, eos = (controls.get(names[name]) for name in ("bos_token", "eos_token"))
        if bos is None or eos is None:
            raise ChatError("--chat-template llama-2 needs begin and end tokens, and this vocabulary has none")
        return Llama2Template(bos, eos)
    longest = max(controls, key=len, default="")
    if len(longest) > _LONGEST_CONTROL or len(controls) > _MOST_CONTROLS:
        raise WeightsError(
            f"{path}: {len(controls)} control tokens, the longest of {len(longest)} characters, are too many or "
            f"too long to look for in chats ({_MOST_CONTROLS}, {_LONGEST_CONTROL}): give --chat-template none"
        )
    return JinjaTemplate(template_source(chosen) if chosen else source or "", controls, names)


def _gguf_template(vocabulary: Vocabulary, chosen: str | None) -> ChatTemplate | None:
    source = vocabulary.metadata.get("tokenizer.chat_template")
    if source is not None and not isinstance(source, str):
        raise WeightsError(f"{vocabulary.path}: tokenizer.chat_template is no text: give another with --chat-template")
    ids = {f"{name}_token": vocabulary.id(name) for name in ("bos", "eos")}
    names = {name: "" if token is None else vocabulary.pieces[token] for name, token in ids.items()}
    return _template(vocabulary.path, source, chosen, vocabulary.controls, names)


def _is_mistral(path: Path) -> bool:
    """Whether mistral-common knows this folder's tokenizer."""
    if own_file(path) is not None:
        return True
    kind = _read(path / "config.json").get("model_type", "mistral" if (path / "params.json").is_file() else "")
    return (path / "tokenizer.model").is_file() and kind in ("mistral", "mixtral", "ministral")


def own_file(path: Path) -> Path | None:
    """A tokenizer file of Mistral's own naming."""
    return next(iter([*sorted(path.glob("tekken*.json")), *sorted(path.glob("tokenizer.model.v*"))]), None)


def _mistral(path: Path, chosen: str | None) -> Tokenizer:
    from cierzo.tokens.mistral import MistralTokenizer

    # Base and instruct weights share these files. A Hugging Face folder says by its template which it is; a
    # consolidated one only by its name.
    has_template = own_template(path) is not None or "instruct" in path.resolve().name.lower()
    instruct = chosen == "mistral" or (chosen is None and has_template)
    if chosen not in (None, "none", "mistral"):
        raise WeightsError(f"{path}: Mistral's tokenizers go with --chat-template mistral or none, not {chosen!r}")
    return MistralTokenizer(own_file(path) or path / "tokenizer.model", instruct=instruct)


def _from_json(path: Path, chosen: str | None) -> Tokenizer:
    from cierzo.tokens.fast import added_tokens, from_json

    file = path / "tokenizer.json"
    spec = read_json(file)
    config = _read(path / "tokenizer_config.json")
    controls = {t["content"]: t["id"] for t in added_tokens(file, spec) if t.get("special")}
    names = {name: spelled(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return from_json(
        file,
        spec,
        bos=names["bos_token"],
        stop=_stop_tokens(path, names["eos_token"], controls),
        template=_template(file, own_template(path), chosen, controls, names),
    )


def _stop_tokens(path: Path, eos: str, controls: Mapping[str, int]) -> set[str]:
    """Spelled tokens that end an answer: the tokenizer's own and those of the generation settings."""
    spelled = {token: text for text, token in controls.items()}
    ids: list[Any] = []
    for name in ("generation_config.json", "config.json"):
        listed = _read(path / name).get("eos_token_id")
        ids += listed if isinstance(listed, list) else [listed]
    return {eos} | {spelled[token] for token in ids if isinstance(token, int) and token in spelled}


def _from_sentencepiece(path: Path, chosen: str | None) -> Tokenizer:
    from cierzo.tokens.sentencepiece import SentencePieceTokenizer, read_model

    file = path / "tokenizer.model"
    library = read_model(file)
    bos, eos = library.bos_id(), library.eos_id()
    if bos < 0 or eos < 0:
        raise WeightsError(f"{file}: a vocabulary without begin and end tokens is not supported")
    controls = {library.id_to_piece(t): t for t in range(library.vocab_size()) if library.is_control(t)}
    names = {"bos_token": library.id_to_piece(bos), "eos_token": library.id_to_piece(eos)}
    template = _template(file, own_template(path), chosen, controls, names)
    return SentencePieceTokenizer(library, bos_id=bos, stop_ids=[eos], template=template)


def own_template(path: Path) -> str | None:
    """The Jinja template of a Hugging Face folder."""
    for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        file = path / name
        if name.endswith(".jinja") and file.is_file():
            return template_source(str(file))
        template = _read(file).get("chat_template")
        if isinstance(template, list):  # several by name
            template = next(
                (t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"), None
            )
        if isinstance(template, str):
            return template
    return None


def spelled(token: Any) -> str:
    """A token of a tokenizer_config.json: text, or a mapping with the text as content."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no such file."""
    return read_json(file) if file.is_file() else {}
