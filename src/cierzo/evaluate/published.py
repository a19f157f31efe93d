"""The published results, as they stand in `published/` with their sources."""

import csv
from functools import cache
from importlib.resources import files
from typing import Any

ARTICLE = "arXiv:2310.06825, Table 2"
LLAMA2 = "arXiv:2307.09288, Table 3 (another pipeline)"

_GROUP_OF = {
    "commonsense_reasoning": ("hellaswag", "winogrande", "piqa", "arc_easy", "arc_challenge"),
    "world_knowledge": ("naturalquestions", "triviaqa"),
    "code": ("humaneval", "mbpp"),
    "math": ("math", "gsm8k"),
    "mmlu": ("mmlu",),
}
"""Columns of Table 2 by group; it has five of the eight sets of commonsense reasoning."""

SIZES = {
    "hellaswag": 10042, "winogrande": 1267, "piqa": 1838, "arc_easy": 2376, "arc_challenge": 1172, "mmlu": 14042,
    "naturalquestions": 3610, "triviaqa": 17944, "humaneval": 164, "mbpp": 500, "math": 5000, "gsm8k": 1319,
}  # fmt: skip
"""Items of the sets, from which a published score's sampling error follows."""


@cache
def rows(name: str) -> dict[str, dict[str, Any]]:
    """Rows of one of the tables, by model; numbers are numbers, in percent."""
    text = files("cierzo.evaluate").joinpath("published", f"{name}.csv").read_text(encoding="utf-8")
    return {
        row.pop("model"): {key: _number(value) for key, value in row.items()}
        for row in csv.DictReader(text.splitlines())
    }


def article_scores() -> dict[str, dict[str, float]]:
    """Scores of Table 2 by model and benchmark, in percent."""
    return {
        model: {key: value for key, value in row.items() if key in SIZES}
        for model, row in rows("mistral_7b_table2").items()
    }


def article_group(model: str, group: str) -> tuple[float, float] | None:
    """A row of Table 2 averaged over a group, and its sampling error, in percent; None where it has none of it."""
    columns = _GROUP_OF.get(group)
    if columns is None:
        return None
    scores = article_scores()[model]
    variance = sum(scores[c] * (100 - scores[c]) / SIZES[c] for c in columns)
    return sum(scores[c] for c in columns) / len(columns), variance**0.5 / len(columns)


def llama2_groups() -> dict[str, list[tuple[float, float]]]:
    """By group: (parameters in 10^9, score in percent) of Llama 2, smallest first."""
    family = [row for model, row in rows("llama2_table3_groups").items() if model.startswith("Llama 2")]
    return {group: [(row["params_b"], row[group]) for row in family] for group in family[0] if group != "params_b"}


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
