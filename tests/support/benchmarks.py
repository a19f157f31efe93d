"""A folder of benchmark files in their published forms, with a few invented items each."""

import bz2
import csv
import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ANIMALS = ("cat", "dog", "cow", "owl", "bee", "fox")
SAYS = ("meow", "woof", "moo", "hoot", "buzz", "yelp")
AGIEVAL = (
    "aqua-rat",
    "gaokao-english",
    "logiqa-en",
    "lsat-ar",
    "lsat-lr",
    "lsat-rc",
    "math",
    "sat-en",
    "sat-en-without-passage",
    "sat-math",
)


def write_data(folder: Path, subjects: Iterable[str] = (), bbh: Iterable[str] = ()) -> Path:
    """Six items of each benchmark. MMLU's subjects and BBH's tasks are those given, with three each."""
    for name in (
        "hellaswag",
        "foundry",
        "piqa",
        "commonsenseqa",
        "nq_open",
        "quac",
        "gsm8k",
        "math",
        "humaneval",
        "mbpp",
        "mmlu/dev",
        "mmlu/test",
        "bbh",
        "agieval",
    ):
        (folder / name).mkdir(parents=True)
    pairs = list(zip(ANIMALS, SAYS, strict=True))
    text = "".join(
        f"Listening: The {a} opens its mouth. it\n{n % 4}\n" + "".join(f"says {_other(n, k)}.\n" for k in _order(n))
        for n, (a, _) in enumerate(pairs)
    )
    (folder / "hellaswag" / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress(text.encode()))
    _lines(
        folder / "piqa" / "valid.jsonl",
        [{"goal": f"Call a {a}.", "sol1": f"Say {s}.", "sol2": "Say nothing."} for a, s in pairs],
    )
    (folder / "piqa" / "valid-labels.lst").write_text("0\n" * len(pairs))
    _lines(
        folder / "foundry" / "winogrande.jsonl",
        [
            {
                "context_options": [f"The {a} met the {b}, so the {a}", f"The {a} met the {b}, so the {b}"],
                "continuation": f"said {s}.",
                "gold": 0,
            }
            for (a, s), b in zip(pairs, (*ANIMALS[1:], "ant"), strict=True)
        ],
    )
    _lines(
        folder / "foundry" / "siqa.jsonl",
        [
            {
                "query": f"Context: Ada fed the {a}.\nQuestion: How is the {a}?\nChoices:\nA. glad\nB. sorry\nAnswer:",
                "choices": ["A", "B"],
                "gold": 0,
            }
            for a in ANIMALS
        ],
    )
    _lines(
        folder / "foundry" / "openbook_qa.jsonl",
        [
            {"query": f"A {a} says", "choices": [_other(n, k) for k in range(4)], "gold": 0}
            for n, a in enumerate(ANIMALS)
        ],
    )
    for name in ("arc_easy", "arc_challenge"):
        _lines(
            folder / "foundry" / f"{name}.jsonl",
            [
                {"query": f"Question: What does a {a} say?", "choices": [_other(n, k) for k in range(4)], "gold": 0}
                for n, a in enumerate(ANIMALS)
            ],
        )
    _lines(
        folder / "commonsenseqa" / "dev_rand_split.jsonl",
        [
            {
                "answerKey": "A",
                "id": str(n),
                "question": {
                    "question_concept": a,
                    "stem": f"What says {s}?",
                    "choices": [{"label": "ABCDE"[k], "text": ANIMALS[(n + k) % 6]} for k in range(5)],
                },
            }
            for n, (a, s) in enumerate(pairs)
        ],
    )
    asked = [{"question": f"what does the {a} say", "answer": [s, s.title()]} for a, s in pairs]
    _lines(folder / "nq_open" / "NQ-open.dev.jsonl", asked)
    _lines(folder / "nq_open" / "NQ-open.efficientqa.dev.1.1.jsonl", asked[::-1])
    _lines(
        folder / "foundry" / "triviaqa_sm_sub.jsonl",
        [
            {"context": f"Question: What does the {a} say?\nAnswer:", "answer": s, "aliases": [s.title()]}
            for a, s in pairs * 2
        ],
    )
    _lines(
        folder / "foundry" / "boolq.jsonl",
        [
            {
                "query": f"Passage: The {a} says {s}.\nQuestion: does the {a} say {s}?",
                "choices": ["no", "yes"],
                "gold": 1,
            }
            for a, s in pairs
        ],
    )
    dialogue = [
        {
            "question": f"What does the {a} say?",
            "answers": [{"text": f"It says {s}"}],
            "orig_answer": {"text": f"It says {s}"},
        }
        for a, s in pairs
    ]
    (folder / "quac" / "quac_sample.json").write_text(
        json.dumps(
            {"data": [{"title": "Farm", "paragraphs": [{"context": "Animals talk. CANNOTANSWER", "qas": dialogue}]}]}
        )
    )
    sums = [
        {"question": f"{n} {a}s and 2 more?", "answer": f"It is {n} + 2 = {n + 2}.\n#### {n + 2}"}
        for n, a in enumerate(ANIMALS)
    ]
    for split in ("train", "test"):
        _lines(folder / "gsm8k" / f"{split}.jsonl", sums * 2)
    kinds = (
        "Algebra",
        "Counting & Probability",
        "Geometry",
        "Intermediate Algebra",
        "Number Theory",
        "Prealgebra",
        "Precalculus",
    )
    _lines(
        folder / "math" / "test.json",
        [
            {
                "problem": f"What is ${n}+2$?",
                "level": "Level 1",
                "type": kind,
                "solution": f"It is $\\boxed{{{n + 2}}}$.",
                "idx": n,
            }
            for n, kind in enumerate(kinds)
        ],
    )
    programs = [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": f'def says_{a}() -> str:\n    """What the {a} says."""\n',
            "entry_point": f"says_{a}",
            "canonical_solution": f"    return {s!r}\n",
            "test": f"def check(candidate):\n    assert candidate() == {s!r}\n",
        }
        for n, (a, s) in enumerate(pairs)
    ]
    with gzip.open(folder / "humaneval" / "HumanEval.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(program) + "\n" for program in programs)
    _lines(
        folder / "mbpp" / "mbpp.jsonl",
        [
            {
                "text": f"Write a function that adds {n}.",
                "code": f"def add{n}(x):\r\n  return x + {n}",
                "task_id": n,
                "test_setup_code": "",
                "test_list": [f"assert add{n}({k}) == {n + k}" for k in range(3)],
                "challenge_test_list": [],
            }
            for n in range(1, 511)
        ],
    )
    for subject in subjects:
        rows = [[f"What does the {a} say?", *(_other(n, k) for k in range(4))] for n, a in enumerate(ANIMALS)]
        _csv(
            folder / "mmlu" / "dev" / f"{subject}_dev.csv",
            [["question", "choice0", "choice1", "choice2", "choice3", "answer"], *([*row, "0"] for row in rows[:5])],
        )
        _csv(folder / "mmlu" / "test" / f"{subject}_test.csv", [[*row, "A"] for row in rows[:3]])
    for name in bbh:
        examples = [{"input": f"True and {n % 2 == 0} is", "target": str(n % 2 == 0)} for n in range(3)]
        (folder / "bbh" / f"{name}.json").write_text(json.dumps({"canary": "", "examples": examples}))
    _write_agieval(folder / "agieval")
    return folder


def _write_agieval(folder: Path) -> None:
    options = [f"({'ABCD'[n]}){word}" for n, word in enumerate(SAYS[:4])]
    item = {"passage": "A cat sits.", "question": "What does it say?", "options": options, "label": "A", "answer": None}
    plain = {"passage": None, "question": "What is 1 + 1?", "options": None, "label": None, "answer": "2"}
    for name in AGIEVAL:
        _lines(folder / f"{name}.jsonl", [plain if name == "math" else item] * 3)
    columns = [name for name in AGIEVAL if name != "sat-en-without-passage"]
    rows = [["", *columns]]
    for n in range(1, 6):
        samples = [repr(plain if c == "math" else item) if n <= 3 or c == "aqua-rat" else "" for c in columns]
        rows += [[f"sample {n}", *samples], [f"explanation {n}", *["because"] * len(columns)]]
    _csv(folder / "few_shot_prompts.csv", rows)


def _other(n: int, k: int) -> str:
    return SAYS[(n + k) % len(SAYS)]


def _order(n: int) -> list[int]:
    """Numbers of four answers, of which the right one (0) stands at place n % 4."""
    return [*range(1, n % 4 + 1), 0, *range(n % 4 + 1, 4)]


def _lines(path: Path, items: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def _csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
