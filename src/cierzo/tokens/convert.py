"""Tokenizers from one kind of file into another: out of GGUF metadata, and into them."""

import json
from pathlib import Path
from typing import Any

from cierzo.errors import WeightsError
from cierzo.tokens.fast import added_tokens
from cierzo.tokens.gguf import CONTROL, NORMAL, PRE_TOKENIZERS, USER_DEFINED, Vocabulary, byte_pair, cut, serialised
from cierzo.tokens.load import own_file, own_template, spelled
from cierzo.tokens.sentencepiece import read_model
from cierzo.weights import read_metadata
from cierzo.weights.source import gguf_file, read_json

_PROBE = (
    "Hello  World, it's 2026!\n\n\tdef f(x): return x**2  # 1,234.5\r\nÀ la carte 日本語 naïve I'M don't\n \n  42nd "
    "ABCdef CamelCase/path http://a.b/c?d=1 ___ ...!? ½ ² 'S"
)


def tokenizer_files(model: Path, folder: Path) -> None:
    """Write the tokenizer inside a GGUF file as the files of a Hugging Face folder; other models have files already."""
    file = gguf_file(model)
    if file is None:
        return
    vocabulary = Vocabulary(file, read_metadata(file))
    names = {name: vocabulary.id(name) for name in ("bos", "eos", "unknown", "padding")}
    config: dict[str, Any] = {
        f"{name.replace('unknown', 'unk').replace('padding', 'pad')}_token": vocabulary.pieces[token]
        for name, token in names.items()
        if token is not None
    }
    template = vocabulary.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    if vocabulary.metadata.get("tokenizer.ggml.model") == "llama":
        (folder / "tokenizer.model").write_bytes(serialised(vocabulary))
        config |= {"tokenizer_class": "LlamaTokenizer", "add_bos_token": vocabulary.bos_id(True) is not None}
    else:
        (folder / "tokenizer.json").write_text(_tokenizer_json(vocabulary), encoding="utf-8")
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write_json(folder / "tokenizer_config.json", config)
    stop = sorted(vocabulary.stop_ids)
    _write_json(folder / "generation_config.json", {"bos_token_id": names["bos"], "eos_token_id": stop})


def _tokenizer_json(vocabulary: Vocabulary) -> str:
    from tokenizers import AddedToken, decoders, processors

    library = byte_pair(vocabulary)
    controls = sorted(vocabulary.controls.items(), key=lambda item: item[1])
    library.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece, _ in controls])
    library.decoder = decoders.ByteLevel()
    bos = vocabulary.bos_id(False)
    if bos is not None:
        piece = vocabulary.pieces[bos]
        library.post_processor = processors.TemplateProcessing(
            single=f"{piece} $A", pair=f"{piece} $A $B", special_tokens=[(piece, bos)]
        )
    text: str = library.to_str()
    return text


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def tokenizer_metadata(model: Path) -> dict[str, Any]:
    """A model's tokenizer as the `tokenizer.*` metadata of a GGUF file.

    Raises `WeightsError` for vocabularies that have no such form here (tekken, and unknown ways to cut texts).
    """
    file = gguf_file(model)
    if file is not None:
        return {key: value for key, value in read_metadata(file).items() if key.startswith("tokenizer.")}
    sentencepiece = own_file(model) or model / "tokenizer.model"
    if sentencepiece.suffix == ".json":
        raise WeightsError(
            f"{sentencepiece}: tekken vocabularies are not written to GGUF: export to huggingface or consolidated"
        )
    if sentencepiece.is_file():
        metadata = _from_sentencepiece(sentencepiece)
    elif (model / "tokenizer.json").is_file():
        metadata = _from_json(model)
    else:
        raise WeightsError(f"{model}: no tokenizer to put into the GGUF file: looked for tokenizer.model and .json")
    template = own_template(model)
    return metadata | ({"tokenizer.chat_template": template} if template else {})


def _from_sentencepiece(file: Path) -> dict[str, Any]:
    library = read_model(file)
    tokens = range(library.vocab_size())

    def kind(token: int) -> int:
        tests = (library.is_unknown, library.is_control, None, library.is_unused, library.is_byte)
        return next((2 + n for n, test in enumerate(tests) if test and test(token)), NORMAL)

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [library.id_to_piece(token) for token in tokens],
        "tokenizer.ggml.scores": [library.get_score(token) for token in tokens],
        "tokenizer.ggml.token_type": [kind(token) for token in tokens],
        "tokenizer.ggml.bos_token_id": library.bos_id(),
        "tokenizer.ggml.eos_token_id": library.eos_id(),
        "tokenizer.ggml.unknown_token_id": library.unk_id(),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def _from_json(model: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer

    file = model / "tokenizer.json"
    spec = read_json(file)
    body = spec.get("model")
    if not isinstance(body, dict) or body.get("type") != "BPE" or body.get("byte_fallback"):
        raise WeightsError(f"{file}: only byte-level byte-pair vocabularies go into GGUF: add the tokenizer.model")
    library = Tokenizer.from_file(str(file))
    pieces = sorted(library.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    if [token for _, token in pieces] != list(range(len(pieces))):
        raise WeightsError(f"{file}: its token numbers have gaps: this vocabulary cannot go into a GGUF file")
    added = {token["id"]: bool(token.get("special")) for token in added_tokens(file, spec)}
    kinds = [(CONTROL if added[t] else USER_DEFINED) if t in added else NORMAL for _, t in pieces]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in body["merges"]]
    settings = read_json(model / "tokenizer_config.json") if (model / "tokenizer_config.json").is_file() else {}
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _cutter(file, library),
        "tokenizer.ggml.tokens": [piece for piece, _ in pieces],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": bool(library.encode("", add_special_tokens=True).ids),
    }
    for name in ("bos", "eos", "unk", "pad"):
        token = library.token_to_id(spelled(settings.get(f"{name}_token")))
        if token is not None:
            longer = {"unk": "unknown", "pad": "padding"}.get(name, name)
            metadata[f"tokenizer.ggml.{longer}_token_id"] = token
    return metadata


def _cutter(file: Path, library: Any) -> str:
    """Which of llama.cpp's ways to cut a text this tokenizer's is, by what it does to a text with all its traps."""
    from tokenizers import pre_tokenizers

    if library.pre_tokenizer is not None and library.normalizer is None:
        wanted = [piece for piece, _ in library.pre_tokenizer.pre_tokenize_str(_PROBE)]
        for name in PRE_TOKENIZERS:
            cutter = pre_tokenizers.Sequence(cut(name))
            if [piece for piece, _ in cutter.pre_tokenize_str(_PROBE)] == wanted:
                return name
    raise WeightsError(f"{file}: its way to cut texts is none that is known by name in GGUF: export to another format")
