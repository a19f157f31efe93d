"""Labelled texts: public sets by their own files, one's own as JSON lines; split by a hash, so that none is mixed."""

import csv
import gzip
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cierzo.errors import CierzoError
from cierzo.guard.classifier import CATEGORIES

Part = Literal["train", "test"]

_OPENAI = {
    "S": "sexual", "H": "hate", "V": "violence", "HR": "harassment", "SH": "self-harm", "S3": "sexual/minors",
    "H2": "hate/threatening", "V2": "violence/graphic",
}  # fmt: skip
_SOURCES = {
    "openai_moderation/samples-1680.jsonl.gz": "openai/moderation-api-release (MIT)",
    "davidson/labeled_data.csv": "t-davidson/hate-speech-and-offensive-language (MIT)",
    "xstest/xstest_prompts.csv": "paul-rottger/exaggerated-safety (CC BY 4.0)",
    "xstest/xstest_v2_completions_mistralinstruct.csv": "paul-rottger/exaggerated-safety (CC BY 4.0)",
}


@dataclass(frozen=True)
class Labelled:
    """A text and what people found in it.

    Attributes:
        harmful: whether any category applies.
        categories: 0 or 1 of those that were judged.
    """

    text: str
    harmful: bool
    categories: dict[str, int] = field(default_factory=dict)


def part_of(text: str) -> Part:
    """The half that a text belongs to, for ever: by the first bit of its hash."""
    return "train" if hashlib.sha256(text.encode("utf-8", "replace")).digest()[0] < 128 else "test"


def folder_of(given: Path | None) -> Path:
    """Where the public sets are: what was said, or CIERZO_SHARED_DATA.

    Raises:
        CierzoError: neither is a folder.
    """
    folder = given or Path(os.environ.get("CIERZO_SHARED_DATA", "../shared/data"))
    for place in (folder, folder / "safety"):
        if (place / "openai_moderation").is_dir():
            return place
    raise CierzoError(
        f"{folder} has no folder openai_moderation: name with --data the folder with {', '.join(_SOURCES)}, from GitHub"
    )


def openai_moderation(folder: Path) -> list[Labelled]:
    """OpenAI's evaluation set (Markov et al., arXiv:2208.03274): 1,680 texts; labels that are missing are unknown."""
    path = _file(folder, "openai_moderation/samples-1680.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [_openai(json.loads(line)) for line in lines]


def _openai(row: dict[str, object]) -> Labelled:
    labels = {name: int(str(row[letter])) for letter, name in _OPENAI.items() if letter in row}
    return Labelled(str(row["prompt"]), any(labels.values()), labels)


def davidson(folder: Path) -> list[Labelled]:
    """Tweets (Davidson et al., arXiv:1703.04009) labelled hate, offensive or neither; harmful means hate here."""
    with _file(folder, "davidson/labeled_data.csv").open(encoding="utf-8", newline="") as lines:
        return [
            Labelled(
                row["tweet"],
                row["class"] == "0",
                {"hate": int(row["class"] == "0"), "offensive": int(row["class"] != "2")},
            )
            for row in csv.DictReader(lines)
        ]


def xstest(folder: Path) -> list[Labelled]:
    """XSTest (Röttger et al., arXiv:2308.01263): 250 prompts that only look harmful and 200 that are."""
    with _file(folder, "xstest/xstest_prompts.csv").open(encoding="utf-8", newline="") as lines:
        return [Labelled(row["prompt"], row["label"] == "unsafe") for row in csv.DictReader(lines)]


@dataclass(frozen=True)
class Answered:
    """A question, a model's answer, and whether people found that it refuses, in full or in part."""

    question: str
    answer: str
    refuses: bool


def xstest_answers(folder: Path) -> list[Answered]:
    """450 answers of Mistral 7B Instruct with the final human label."""
    path = _file(folder, "xstest/xstest_v2_completions_mistralinstruct.csv")
    with path.open(encoding="utf-8", newline="") as lines:
        return [
            Answered(row["prompt"], row["completion"], row["final_label"] != "1_full_compliance")
            for row in csv.DictReader(lines)
        ]


def own(path: Path) -> list[Labelled]:
    """A set of one's own: a JSON object a line with `text`, and `harmful` (true, false) or `categories` (name to 0, 1).

    Raises:
        CierzoError: the line, and what is wrong in it.
    """
    return list(_own(path))


def _own(path: Path) -> Iterator[Labelled]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CierzoError(f"cannot read {path}: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CierzoError(f"{path}, line {number}: no JSON: {error}") from None
        text = row.get("text") if isinstance(row, dict) else None
        categories = row.get("categories", {}) if isinstance(row, dict) else {}
        if not isinstance(text, str) or not isinstance(categories, dict):
            raise CierzoError(f'{path}, line {number}: write {{"text": ..., "harmful": true}} or "categories": {{...}}')
        if unknown := [name for name in categories if name not in CATEGORIES]:
            raise CierzoError(f"{path}, line {number}: no category {unknown[0]!r}: use some of {', '.join(CATEGORIES)}")
        if not all(value in (0, 1) for value in categories.values()):
            raise CierzoError(f"{path}, line {number}: a category's value is 0 or 1")
        harmful = row.get("harmful", any(categories.values()) if categories else None)
        if not isinstance(harmful, bool):
            raise CierzoError(f"{path}, line {number}: harmful must be true or false")
        yield Labelled(text, harmful, {name: int(value) for name, value in categories.items()})


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise CierzoError(f"there is no {path}: it is in the repository {_SOURCES[name]} on GitHub")
    return path
