"""The benchmarks' files, read into the columns that their data sets have on the hub.

The folder is laid out as `docs/evaluation.md` lists it: the sets as their authors, or MosaicML's llm-foundry, publish
them. Readers give the items of each split.
"""

import ast
import bz2
import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cierzo.errors import CierzoError

Item = dict[str, Any]
Splits = dict[str, list[Item]]
Reader = Callable[[Path], Splits]

_SHOTS = 5
"""Items of TriviaQA's file that are examples and are not asked."""


def opened(path: Path, hint: str = "; docs/evaluation.md says what --data holds") -> Iterator[str]:
    """Lines of a file that may be compressed. `hint` ends the error that it cannot be opened.

    Raises:
        CierzoError: it is not there, broken, or no UTF-8 text.
    """
    kinds: dict[str, Callable[..., Any]] = {".bz2": bz2.open, ".gz": gzip.open}
    try:
        with kinds.get(path.suffix, open)(path, "rt", encoding="utf-8", newline="") as file:
            yield from file
    except UnicodeDecodeError:
        raise CierzoError(f"{path} is no UTF-8 text") from None
    except (EOFError, zlib.error):
        raise CierzoError(f"{path} is broken or ends too early: fetch it again") from None
    except OSError as error:
        raise CierzoError(f"cannot read {path}: {error.strerror or error}{hint}") from None


def lines(path: Path, **options: Any) -> Iterator[Any]:
    """What stands in each line, as JSON; `options` go to `opened`."""
    for number, line in enumerate(opened(path, **options), 1):
        try:
            yield json.loads(line)
        except ValueError:
            raise CierzoError(f"{path}: line {number} is no JSON") from None


def rows(path: Path, *columns: str) -> Iterator[Item]:
    """Objects of JSON lines.

    Raises:
        CierzoError: one of them lacks a column.
    """
    for number, item in enumerate(lines(path), 1):
        missing = [name for name in columns if name not in item] if isinstance(item, dict) else columns
        if missing:
            raise CierzoError(f"{path}: line {number} has no {', '.join(missing)}")
        yield item


def _table(path: Path) -> Iterator[list[str]]:
    return csv.reader(opened(path))


def _whole(path: Path) -> Any:
    try:
        return json.loads("".join(opened(path)))
    except ValueError:
        raise CierzoError(f"{path} is no JSON") from None


def _choices(texts: list[str]) -> Item:
    return {"text": texts, "label": [chr(ord("A") + n) for n in range(len(texts))]}


def hellaswag(data: Path) -> Splits:
    """Six lines an item: activity and context in one, the right ending's number, four endings."""
    text = opened(data / "hellaswag" / "hellaswag_val_full.txt.bz2")
    items = []
    while item := [line.rstrip("\r\n") for line in islice(text, 6)]:
        activity, _, context = item[0].partition(": ")
        # The hub has the context's unfinished last sentence apart, and its harness capitalises it.
        split = re.fullmatch(r"(.*[.!?\]\"']) ([a-z][^.!?]*)", context)
        before, begun = split.groups() if split else (context, "")
        items.append(
            {"activity_label": activity, "ctx_a": before, "ctx_b": begun, "label": item[1], "endings": item[2:]}
        )
    return {"validation": items}


def winogrande(data: Path) -> Splits:
    items = []
    for line in rows(data / "foundry" / "winogrande.jsonl", "context_options", "continuation", "gold"):
        first, second = line["context_options"]
        same = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
        same = first.rfind(" ", 0, same) + 1  # options are whole words
        items.append(
            {
                "sentence": f"{first[:same]}_ {line['continuation']}",
                "option1": first[same:],
                "option2": second[same:],
                "answer": str(line["gold"] + 1),
            }
        )
    return {"validation": items}


def piqa(data: Path) -> Splits:
    labels = opened(data / "piqa" / "valid-labels.lst")
    items = rows(data / "piqa" / "valid.jsonl", "goal", "sol1", "sol2")
    return {"validation": [item | {"label": int(label)} for item, label in zip(items, labels, strict=True)]}


def siqa(data: Path) -> Splits:
    """The file has two of the three answers."""
    items = []
    for line in rows(data / "foundry" / "siqa.jsonl", "query", "gold"):
        context, question, *choices = re.split(
            r"\nQuestion: |\nChoices:\nA\. |\nB\. ", line["query"].removeprefix("Context: ").removesuffix("\nAnswer:")
        )
        items.append({"context": context, "question": question, "choices": choices, "gold": line["gold"]})
    return {"validation": items}


def openbookqa(data: Path) -> Splits:
    return {
        "test": [
            {"question_stem": i["query"], "choices": _choices(i["choices"]), "answerKey": chr(ord("A") + i["gold"])}
            for i in rows(data / "foundry" / "openbook_qa.jsonl", "query", "choices", "gold")
        ]
    }


def arc(name: str) -> Reader:
    def read(data: Path) -> Splits:
        return {
            "test": [
                {
                    "question": i["query"].removeprefix("Question: "),
                    "choices": _choices(i["choices"]),
                    "answerKey": chr(ord("A") + i["gold"]),
                }
                for i in rows(data / "foundry" / f"{name}.jsonl", "query", "choices", "gold")
            ]
        }

    return read


def commonsenseqa(data: Path) -> Splits:
    return {
        "validation": [
            {
                "question": i["question"]["stem"],
                "choices": _choices([choice["text"] for choice in i["question"]["choices"]]),
                "answerKey": i["answerKey"],
            }
            for i in rows(data / "commonsenseqa" / "dev_rand_split.jsonl", "question", "answerKey")
        ]
    }


def naturalquestions(data: Path) -> Splits:
    """Examples come from EfficientQA's development set: the training set is not in the folder."""
    files = {"validation": "NQ-open.dev.jsonl", "examples": "NQ-open.efficientqa.dev.1.1.jsonl"}
    return {split: list(rows(data / "nq_open" / file, "question", "answer")) for split, file in files.items()}


def triviaqa(data: Path) -> Splits:
    items = [
        {
            "question": i["context"].removeprefix("Question: ").removesuffix("\nAnswer:").removesuffix("?"),
            "answer": {"value": i["answer"], "aliases": [i["answer"], *i["aliases"]]},
        }
        for i in rows(data / "foundry" / "triviaqa_sm_sub.jsonl", "context", "answer", "aliases")
    ]
    return {"validation": items[_SHOTS:], "examples": items[:_SHOTS]}


def boolq(data: Path) -> Splits:
    items = []
    for line in rows(data / "foundry" / "boolq.jsonl", "query", "gold"):
        passage, _, question = line["query"].removeprefix("Passage: ").rpartition("\nQuestion: ")
        items.append({"passage": passage, "question": question.removesuffix("?"), "label": line["gold"]})
    return {"validation": items}


def quac(data: Path) -> Splits:
    """Each question after the dialogue before it."""
    items = []
    for article in _whole(data / "quac" / "quac_sample.json")["data"]:
        for paragraph in article["paragraphs"]:
            before: list[str] = []
            for asked in paragraph["qas"]:
                answers = [answer["text"] for answer in asked["answers"]]
                items.append(
                    {
                        "title": article["title"],
                        "passage": paragraph["context"].removesuffix(" CANNOTANSWER"),
                        "dialogue": "".join(before),
                        "question": asked["question"],
                        "answers": answers,
                    }
                )
                before.append(f"Q: {asked['question']}\nA: {asked['orig_answer']['text']}\n\n")
    return {"validation": items}


def gsm8k(data: Path) -> Splits:
    return {split: list(rows(data / "gsm8k" / f"{split}.jsonl", "question", "answer")) for split in ("train", "test")}


def math(data: Path) -> Splits:
    return {"test": list(rows(data / "math" / "test.json", "problem", "solution", "level", "type"))}


def humaneval(data: Path) -> Splits:
    return {"test": list(rows(data / "humaneval" / "HumanEval.jsonl.gz", "prompt", "test", "entry_point"))}


def mbpp(data: Path) -> Splits:
    """Tasks 11 to 510 are the test, and of those before them 2, 3 and 4 the examples of the set's authors."""
    columns = ("task_id", "text", "code", "test_setup_code", "test_list")
    tasks = {item["task_id"]: item for item in rows(data / "mbpp" / "mbpp.jsonl", *columns)}
    return {"test": [tasks[n] for n in range(11, 511)], "examples": [tasks[n] for n in (2, 3, 4)]}


def mmlu(subject: str) -> Reader:
    """Answers are letters or, in some copies of the development files, digits under a header."""

    def item(row: list[str]) -> Item:
        answer = int(row[5]) if row[5].isdigit() else "ABCD".index(row[5])
        return {"question": row[0], "choices": row[1:5], "answer": answer, "subject": subject}

    def read(data: Path) -> Splits:
        examples = list(_table(data / "mmlu" / "dev" / f"{subject}_dev.csv"))
        if examples and not re.fullmatch("[A-D0-3]", examples[0][-1]):
            examples = examples[1:]  # a header
        test = _table(data / "mmlu" / "test" / f"{subject}_test.csv")
        return {"dev": list(map(item, examples)), "test": list(map(item, test))}

    return read


def bbh(name: str) -> Reader:
    return lambda data: {"test": _whole(data / "bbh" / f"{name}.json")["examples"]}


def agieval(name: str) -> Reader:
    """Examples are the authors' own, three to five a set; the set without passages takes those of the one with them."""
    column = name.removesuffix("-without-passage")

    def item(raw: Item) -> Item:
        passage = "" if column != name else raw["passage"] or ""
        if raw["options"] is None:
            return {"query": f"Q: {raw['question']}\nA: The answer is", "answer": raw["answer"]}
        letters = f"A through {chr(ord('A') + len(raw['options']) - 1)}"
        options = " ".join(raw["options"])
        query = f"{passage}\nQ: {raw['question']} Answer Choices: {options}\nA: Among {letters}, the answer is"
        choices = [f"({chr(ord('A') + n)})" for n in range(len(raw["options"]))]
        return {"query": query.lstrip("\n"), "choices": choices, "gold": [ord(raw["label"]) - ord("A")]}

    def read(data: Path) -> Splits:
        folder = data / "agieval"
        header, *rows = _table(folder / "few_shot_prompts.csv")
        samples = [row[header.index(column)] for row in rows if row[0].startswith("sample")]
        return {
            "test": [item(raw) for raw in lines(folder / f"{name}.jsonl")],
            "examples": [item(ast.literal_eval(sample)) for sample in samples if sample],
        }

    return read


def read(name: str, reader: Reader, folder: Path) -> Splits:
    """The items of a benchmark.

    Raises:
        CierzoError: files are missing, empty, or not as `docs/evaluation.md` lists them.
    """
    try:
        splits = reader(folder)
    except (LookupError, TypeError, ValueError, AttributeError, SyntaxError, csv.Error) as error:
        what = f"{type(error).__name__}: {error}"
        raise CierzoError(f"{name}: its files in {folder} are not as docs/evaluation.md lists them ({what})") from None
    for split, items in splits.items():
        if not items:
            raise CierzoError(f"{name}: its files in {folder} have no items of {split!r}")
    return splits
