"""Benchmarks from files: what is asked, and what is refused."""

import bz2
import gzip
import re
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'cierzo[eval]'")

from cierzo.errors import CierzoError
from cierzo.evaluate.data import read
from cierzo.evaluate.sandbox import Sandbox
from cierzo.evaluate.suite import Options, chosen, left_out, spread
from cierzo.evaluate.tasks import BENCHMARKS, GROUPS, SUITES, best_f1, build, word_f1

UNUSED = cast(Sandbox, object())
"""Nothing of what is asked is run."""


def prompts(tasks: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What the first task asks of the model."""
    task = next(iter(tasks.values()))
    task.build_all_requests(limit=1)
    return [instance.args for instance in task.instances]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "hellaswag",
            [("Listening: The cat opens its mouth. It", f" says {s}.") for s in ("meow", "woof", "moo", "hoot")],
        ),
        (
            "winogrande",
            [("The cat met the dog, so the cat", " said meow."), ("The cat met the dog, so the dog", " said meow.")],
        ),
        (
            "piqa",
            [("Question: Call a cat.\nAnswer:", " Say meow."), ("Question: Call a cat.\nAnswer:", " Say nothing.")],
        ),
        (
            "siqa",
            [
                ("Q: Ada fed the cat. How is the cat?\nA:", " glad"),
                ("Q: Ada fed the cat. How is the cat?\nA:", " sorry"),
            ],
        ),
        ("openbookqa", [("A cat says", f" {s}") for s in ("meow", "woof", "moo", "hoot")]),
        ("arc_easy", [("Question: What does a cat say?\nAnswer:", f" {s}") for s in ("meow", "woof", "moo", "hoot")]),
        (
            "boolq",
            [("The cat says meow.\nQuestion: does the cat say meow?\nAnswer:", answer) for answer in (" no", " yes")],
        ),
    ],
)
def test_questions_are_the_harness_s_own(data: Path, name: str, expected: list[tuple[str, str]]) -> None:
    assert prompts(build(name, data, None, None)) == expected


def test_examples_stand_before_the_question(data: Path) -> None:
    (prompt, _), *_ = prompts(build("mmlu", data, None, None))
    assert prompt.count("Answer: A\n\n") == 5
    assert prompt.endswith("What does the cat say?\nA. meow\nB. woof\nC. moo\nD. hoot\nAnswer:")
    [(prompt, settings)] = prompts(build("naturalquestions", data, None, None))
    assert prompt.count("A: ") == 5
    assert "fox" in prompt  # of the other set
    assert prompt.endswith("Q: what does the cat say?\nA:")
    assert settings["until"]
    [(prompt, _)] = prompts(build("triviaqa", data, None, None))
    assert prompt.count("\nAnswer:") == 6
    [(prompt, _)] = prompts(build("gsm8k", data, None, None))
    assert prompt.count("The answer is ") == 8
    [(prompt, _)] = prompts(build("bbh", data, None, None))
    assert prompt.count("\nA: ") == 3
    (prompt, choice), *_ = prompts(build("agieval", data, None, None))
    assert prompt.count("the answer is (A)") == 5
    assert choice == " (A)"
    [(prompt, _)] = prompts(build("mbpp", data, None, UNUSED))
    assert prompt.count("[DONE]") == 3
    assert prompt.endswith("assert add11(2) == 13\n[BEGIN]\n")
    [(prompt, _)] = prompts(build("quac", data, None, None))
    assert prompt == "Title: Farm\n\nBackground: Animals talk.\n\nQ: What does the cat say?\nA:"


def test_every_benchmark_is_there(data: Path) -> None:
    built = {name: build(name, data, None, UNUSED) for name in SUITES["article"]}
    for name, tasks in built.items():
        assert all(len(task.eval_docs) > 0 for task in tasks.values()), name
    counts = {name: len(tasks) for name, tasks in built.items() if len(tasks) > 1}
    assert counts == {"mmlu": 57, "bbh": 27, "math": 7, "agieval": 10}
    assert {b.group for b in BENCHMARKS.values()} == set(GROUPS)


@given(st.integers(0, 100), st.lists(st.integers(0, 20), min_size=1, max_size=9))
def test_a_limit_is_spread_evenly(limit: int, sizes: list[int]) -> None:
    taken = spread(limit, {str(n): size for n, size in enumerate(sizes)})
    counts = [len(taken[str(n)]) for n in range(len(sizes))]
    assert sum(counts) == min(limit, sum(sizes))
    assert all(indices == list(range(len(indices))) for indices in taken.values())
    full = [count == size for count, size in zip(counts, sizes, strict=True)]
    open_ = [count for count, whole in zip(counts, full, strict=True) if not whole]
    assert not open_ or max(open_) - min(open_) <= 1
    assert not open_ or max(counts) <= max(open_) + 1


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [("The cat!", "cat", 1.0), ("a big cat", "the cat", 2 / 3), ("dog", "cat", 0.0), ("", "", 1.0), ("", "cat", 0.0)],
)
def test_overlap_of_words(answer: str, truth: str, expected: float) -> None:
    assert word_f1(answer, truth) == pytest.approx(expected)
    assert best_f1({"answers": ["xyz", truth]}, [answer])["f1"] == pytest.approx(expected)


def test_what_cannot_be_measured_is_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CierzoError, match="--allow-code-execution"):
        build("humaneval", data, None, None)
    with pytest.raises(CierzoError, match="5 examples, and 6 are asked for"):
        build("triviaqa", data, 6, None)
    with pytest.raises(CierzoError, match="0 examples"):
        build("piqa", data, 1, None)
    for name, shots, here in (("gsm8k", 10, 8), ("bbh", 5, 3), ("math", 5, 4)):  # examples of the harness's own
        with pytest.raises(
            CierzoError, match=f"{name} has {here} examples, and {shots} are asked for: lower --fewshot"
        ):
            build(name, data, shots, None)
    with pytest.raises(CierzoError, match=r"quac .* give --data"):
        build("quac", None, None, None)
    with pytest.raises(CierzoError, match=r"cannot read .*boolq.jsonl: No such file"):
        build("boolq", tmp_path, None, None)
    with pytest.raises(CierzoError, match="there is no benchmark chess"):
        Options(("chess",))
    with pytest.raises(CierzoError, match="there is no suite chess: there are article, quick"):
        chosen("chess", None)
    assert chosen("quick", "piqa, boolq,piqa") == ("piqa", "boolq")


def test_a_suite_without_files_leaves_out_what_the_hub_has_not() -> None:
    assert list(left_out(SUITES["article"])) == ["quac"]
    assert "only be measured from files" in left_out(SUITES["article"])["quac"]
    assert left_out(SUITES["quick"]) == {}


def test_the_hub_has_other_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """MBPP's come from ten tasks, and are the same as from files; AGIEval has none, which is told."""
    import datasets

    mbpp = [
        {"task_id": n, "text": f"task {n}", "code": f"code {n}", "test_list": ["a", "b", "c"], "test_setup_code": ""}
        for n in range(1, 12)
    ]
    exam = [{"query": "Q", "choices": ["(A)", "(B)"], "gold": [0], "answer": "2"}]
    hub = {"prompt": mbpp[:10], "test": mbpp[10:]}
    monkeypatch.setattr(
        datasets, "load_dataset", lambda **asked: datasets.DatasetDict(
            {split: datasets.Dataset.from_list(items) for split, items in
             (hub if "mbpp" in asked["path"] else {"test": exam}).items()})
    )  # fmt: skip
    [(prompt, _)] = prompts(build("mbpp", None, None, UNUSED))
    assert re.findall("code [0-9]+", prompt) == ["code 2", "code 3", "code 4"]
    with pytest.raises(CierzoError, match="mbpp has 3 examples, and 4"):
        build("mbpp", None, 4, UNUSED)
    built = build("agieval", None, None, None)
    assert {task.config.num_fewshot for task in built.values()} == {0}
    with pytest.raises(CierzoError, match="agieval has 0 examples, and 3"):
        build("agieval", None, 3, None)


def test_without_a_network_the_hub_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(**ignored: Any) -> None:
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        CierzoError, match=r"cannot fetch baber/piqa from the hub: Couldn't reach it; give --data FOLDER"
    ):
        build("piqa", None, None, None)


@pytest.mark.parametrize(
    ("name", "file", "content", "told"),
    [
        ("piqa", "piqa/valid.jsonl", b"", "piqa: its files in .* are not as"),
        ("boolq", "foundry/boolq.jsonl", b"", "boolq: .* have no items of 'validation'"),
        ("boolq", "foundry/boolq.jsonl", b'{"question": "?"}\n', "boolq.jsonl: line 1 has no query, gold$"),
        ("arc_easy", "foundry/arc_easy.jsonl", b"[1]\n", "arc_easy.jsonl: line 1 has no query, choices, gold$"),
        ("boolq", "foundry/boolq.jsonl", b"\xff\xfe\n", "boolq.jsonl is no UTF-8 text$"),
        ("gsm8k", "gsm8k/test.jsonl", b"poem\n", "test.jsonl: line 1 is no JSON$"),
        ("commonsenseqa", "commonsenseqa/dev_rand_split.jsonl", b'{"question": 1, "answerKey": 1}\n', "not as .*"),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", gzip.compress(b'{"a": 1}' * 99, mtime=0)[:20], "is broken"),
        ("hellaswag", "hellaswag/hellaswag_val_full.txt.bz2", bz2.compress(b"x" * 999)[:30], "is broken"),
        ("hellaswag", "hellaswag/hellaswag_val_full.txt.bz2", bz2.compress(b"one line\n"), "not as .* lists"),
        ("mmlu", "mmlu/test/anatomy_test.csv", b"Q,a,b\n", "mmlu: its files in .* not as .* lists"),
        ("agieval", "agieval/few_shot_prompts.csv", b"", "agieval: its files in .* not as .* lists"),
        ("bbh", "bbh/navigate.json", b"{}", "bbh: its files in .* not as .* lists"),
        ("mbpp", "mbpp/mbpp.jsonl", b"", "mbpp: its files in .* not as .* lists"),
    ],
)  # fmt: skip
def test_files_that_are_not_as_they_should_be(
    data: Path, tmp_path: Path, name: str, file: str, content: bytes, told: str
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / file).write_bytes(content)
    with pytest.raises(CierzoError, match=told) as raised:
        build(name, folder, None, UNUSED if BENCHMARKS[name].code else None)
    assert "\n" not in str(raised.value)


def test_examples_of_mmlu_with_and_without_a_header(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "mmlu", tmp_path / "mmlu")
    file = tmp_path / "mmlu" / "dev" / "anatomy_dev.csv"
    with_header = read("mmlu", BENCHMARKS["mmlu"].read("mmlu_anatomy"), tmp_path)
    file.write_text("".join(line.replace(",0", ",A") for line in file.read_text().splitlines(keepends=True)[1:]))
    assert read("mmlu", BENCHMARKS["mmlu"].read("mmlu_anatomy"), tmp_path) == with_header
    assert len(with_header["dev"]) == 5
