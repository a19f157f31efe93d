"""Long context: does a model find what stands far back, and does it predict better the more it has read.

A needle is a sentence with a number, somewhere in real text, and a question for the number at the end. A model with a
window of W in each of n layers can carry what it read over W - 1 tokens a layer, so at most n (W - 1) tokens; beyond
one window it has to.
"""

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from cierzo.engine import SamplingParams
from cierzo.errors import CierzoError
from cierzo.evaluate.data import lines, opened
from cierzo.evaluate.journal import Journal
from cierzo.evaluate.statistics import mean_and_error, score_and_error
from cierzo.llm import LLM
from cierzo.progress import progress_bar

_NEEDLE = " The secret number of the lighthouse is {}."
_QUESTION = "\n\nQuestion: What is the secret number of the lighthouse?\nAnswer: The secret number of the lighthouse is"
_HINT = ": --text takes JSON lines with a text each, or a plain text"
_DIGITS = 5
_TOO_SHORT = "no text has {} tokens: give longer ones, or lower --lengths"
_ANSWER = 12  # tokens: five digits, each perhaps one, and a space


def read_texts(path: Path) -> list[str]:
    """Texts of a file: JSON lines with a `text`, perhaps compressed, or one plain text.

    Raises:
        CierzoError: it cannot be read, or has none.
    """
    if ".jsonl" in path.suffixes:
        texts = [str(item["text"]) for item in lines(path, hint=_HINT) if isinstance(item, dict) and item.get("text")]
    else:
        texts = ["".join(opened(path, hint=_HINT))]
    if not any(texts):
        raise CierzoError(f"{path} has no texts: give JSON lines with a text each, or a plain text")
    return texts


def reach(llm: LLM) -> int | None:
    """How far back, in tokens, anything can still reach the last one; None without a window in some layer."""
    windows = llm.config.windows
    return None if not all(windows) else sum(w.reach - 1 for w in windows if w is not None)


def check(llm: LLM, texts: Sequence[str], lengths: Sequence[int]) -> None:
    """Whether all lengths can be measured, before the first is.

    Raises:
        CierzoError: one has no room for the needle, passes the model's limit, or is longer than every text.
    """
    for length in sorted(lengths):
        _prompt(llm, [], length, 0.0, "0" * _DIGITS)
        if llm.max_seq_len is not None and length + _ANSWER > llm.max_seq_len:
            raise CierzoError(
                f"a prompt of {length} tokens and an answer of {_ANSWER} pass the model's limit of {llm.max_seq_len}: "
                "lower --lengths"
            )
    longest = max(lengths)
    if not any(len(llm.tokenizer.encode(text[: 8 * longest])) >= longest for text in texts):
        raise CierzoError(_TOO_SHORT.format(longest))


def needles(
    llm: LLM,
    texts: Sequence[str],
    lengths: Sequence[int],
    depths: Sequence[float],
    trials: int,
    seed: int,
    journal: Journal | None = None,
) -> list[dict[str, Any]]:
    """Ask for needles of every length and depth.

    Args:
        lengths: of whole prompts, in tokens.
        depths: where the needle stands, from 0 (the beginning) to 1 (the end).
        trials: other texts and numbers for each of them.
        journal: keeps each cell, so that a run that was killed goes on.

    Returns:
        For each length and depth: `found` (0..1) and its `stderr`, and `distance` from needle to the prompt's end in
        tokens.
    """
    known = {} if journal is None else journal.answers
    cells: list[dict[str, Any]] = []
    with progress_bar("needles", unit="prompts") as report:
        total = len(lengths) * len(depths)
        for length in lengths:
            # Each length and each cell draws from its own, so that those that are there already change nothing.
            draw = random.Random(f"{seed} {length}")
            hay: list[list[int]] = []
            for depth in depths:
                report(len(cells), total)
                key = f"needle {length} {depth}"
                if key in known:
                    cells.append(known[key])
                    continue
                hay = hay or [_hay(llm, texts, length, draw) for _ in range(trials)]
                draw_number = random.Random(f"{seed} {length} {depth}")
                numbers = [str(draw_number.randrange(10 ** (_DIGITS - 1), 10**_DIGITS)) for _ in range(trials)]
                asked = [_prompt(llm, ids, length, depth, number) for ids, number in zip(hay, numbers, strict=True)]
                answers = llm.generate([ids for ids, _ in asked], SamplingParams(temperature=0, max_tokens=_ANSWER))
                found = [float(number in answer.text) for number, answer in zip(numbers, answers, strict=True)]
                mean, error = score_and_error(found)
                cells.append(
                    {
                        "length": length, "depth": depth, "distance": asked[0][1], "found": mean, "stderr": error,
                        "trials": trials,
                    }
                )  # fmt: skip
                if journal is not None:
                    journal.add(key, cells[-1])
    return cells


def _hay(llm: LLM, texts: Sequence[str], length: int, draw: random.Random) -> list[int]:
    """Tokens of a real text, as many as asked for, from somewhere in it."""
    order = list(texts)
    draw.shuffle(order)
    for text in order:
        needed = 8 * length  # characters: no tokenizer makes fewer tokens of prose
        start = draw.randrange(max(1, len(text) - needed))
        ids = llm.tokenizer.encode(text[start : start + needed])
        if len(ids) >= length:
            return ids[:length]
    raise CierzoError(_TOO_SHORT.format(length))


def _prompt(llm: LLM, hay: list[int], length: int, depth: float, number: str) -> tuple[list[int], int]:
    """Token ids of a prompt, exactly `length` of them, and the distance from the needle's end to the prompt's."""
    encode = llm.tokenizer.encode
    needle, question = encode(_NEEDLE.format(number)), encode(_QUESTION)
    begin = [] if llm.tokenizer.bos_id is None else [llm.tokenizer.bos_id]
    room = length - len(needle) - len(question) - len(begin)
    if room < 1:
        raise CierzoError(f"a prompt of {length} tokens has no room for needle and question")
    place = round(depth * room)
    return begin + hay[:place] + needle + hay[place:room] + question, room - place + len(question)


def perplexity_by_position(
    llm: LLM, texts: Sequence[str], length: int, documents: int, bins: int = 16, journal: Journal | None = None
) -> list[dict[str, Any]]:
    """Mean log-probability lost a token (nats), by how much stood before it.

    Returns:
        For each bin of positions: `first` and `last` (tokens before), `loss` and `stderr` over the documents.
    """
    begin = [] if llm.tokenizer.bos_id is None else [llm.tokenizer.bos_id]
    chosen: list[list[int]] = []
    for text in texts:
        ids = begin + llm.tokenizer.encode(text[: 8 * length])
        if len(ids) >= length and len(chosen) < documents:
            chosen.append(ids[:length])
    if not chosen:
        raise CierzoError(_TOO_SHORT.format(length))
    bins = min(bins, length - 1)
    edges = [round((length - 1) * n / bins) for n in range(bins + 1)]
    known = {} if journal is None else journal.answers
    losses: list[list[float]] = []
    """Of each document, by bin."""
    with progress_bar("reading", unit="texts") as report:
        for ids in chosen:
            report(len(losses), len(chosen))
            key = f"losses {len(losses)}"
            if key in known:
                losses.append(known[key])
                continue
            each = [-token.logprob for token in llm.score(ids)[0]]
            losses.append([sum(each[first:last]) / (last - first) for first, last in pairwise(edges)])
            if journal is not None:
                journal.add(key, losses[-1])
    rows = []
    for (first, last), own in zip(pairwise(edges), zip(*losses, strict=True), strict=True):
        mean, error = mean_and_error(own)
        rows.append({"first": first + 1, "last": last, "loss": mean, "stderr": error, "documents": len(losses)})
    return rows


def needle_table(cells: Sequence[dict[str, Any]], limit: int | None) -> list[str]:
    """Lines of text: a row a depth, a column a length; what lies beyond the windows' reach stands in brackets."""
    lengths = sorted({cell["length"] for cell in cells})
    depths = sorted({cell["depth"] for cell in cells})
    found = {(cell["length"], cell["depth"]): cell for cell in cells}
    rows = ["depth   " + "".join(f"{length:>10,}" for length in lengths)]
    for depth in depths:
        row = f"{depth:6.0%}  "
        for length in lengths:
            cell = found[length, depth]
            text = f"{cell['found']:.0%}"
            row += f"{f'({text})' if limit is not None and cell['distance'] > limit else text:>10}"
        rows.append(row)
    return rows
