"""`cierzo eval` as users run it, its records, and the report of two."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'cierzo[eval]'")

from cierzo.cli.evaluate import evaluate
from cierzo.errors import CierzoError
from cierzo.evaluate.lm import BLOCK_SIZE
from cierzo.evaluate.record import read_record, write_record
from cierzo.evaluate.report import write_report
from cierzo.evaluate.statistics import mean_and_error, mean_of, plus_minus, score_and_error
from cierzo.evaluate.tasks import SUITES
from cierzo.files import write_whole
from support.namespaces import default_sandbox

COMMAND = [sys.executable, "-m", "cierzo", "eval"]
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CIERZO_THREADS": "1", "OMP_NUM_THREADS": "1"}


def cierzo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=280, env={**os.environ, **OFFLINE}
    )


def result(title: str, group: str, items: list[float], **more: Any) -> dict[str, Any]:
    mean, error = score_and_error(items)
    return {
        "title": title,
        "group": group,
        "score": mean,
        "stderr": error,
        "n": len(items),
        "of": len(items),
        "shots": 0,
        "published_shots": 0,
        "metric": "acc",
        "filter": "none",
        "note": None,
        "prompts": "p",
        "tasks": {},
        "items": items,
        **more,
    }


def record(format: str, parameters: int = 135_000_000, shift: int = 0) -> dict[str, Any]:
    items = [float((7 * n + shift) % 3 == 0) for n in range(90)]
    return {
        "kind": "suite",
        "suite": None,
        "settings": {"benchmarks": ["piqa"], "limit": 90, "seed": 0},
        "model": {
            "name": "<b>small</b>",
            "sha256": "0" * 64,
            "format": format,
            "parameters": parameters,
            "weight_bytes": 10**8,
            "begin_of_text": None,
            "instruction_set": "avx2",
            "threads": 2,
        },
        "machine": {"processor": "p", "cores": 2, "python": "3", "cierzo": "0", "commit": None, "versions": {}},
        "time": {"began": 0.0, "seconds": 1.0},
        "truncated": 0,
        "speed": {"decode_tokens_per_second": 100.0, "prompt_tokens_per_second": 300.0},
        "results": {
            "piqa": result("PIQA", "commonsense_reasoning", items, of=1838),
            "mmlu": result("MMLU", "aggregated", items[::-1]),
            "quac": result("QuAC", "reading_comprehension", items[:12], note="a fixture"),
        },
    }


def test_a_run_from_files_offline(data: Path, default_gguf: Path, tmp_path: Path) -> None:
    default_sandbox()
    out = tmp_path / "run.json"
    arguments = [
        str(default_gguf),
        "--tasks",
        "piqa,humaneval,naturalquestions",
        "--limit",
        "1",
        "--data",
        str(data),
        "--allow-code-execution",
        "--out",
        str(out),
    ]
    first = cierzo(*arguments)
    assert first.returncode == 0, first.stderr
    assert [line.split()[0] for line in first.stdout.splitlines()] == ["PIQA", "HumanEval", "NaturalQuestions"]
    assert "1 of 6 items" in first.stdout
    assert first.stderr.splitlines() == [f"wrote {out}"]
    written = read_record(out)
    assert written["model"]["sha256"].startswith("b179c9523d0e6a0f")
    assert written["results"]["naturalquestions"]["shots"] == 5
    assert written["results"]["humaneval"]["shots"] == 0
    assert written["speed"]["decode_tokens_per_second"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    again = cierzo(*arguments)
    assert again.returncode == 1
    assert again.stderr == f"error: {out} is there already: records are never overwritten; choose another --out\n"
    assert read_record(out) == written


def test_programs_are_not_run_unasked(data: Path) -> None:
    refused = cierzo("--tasks", "humaneval,piqa", "--data", str(data))
    assert refused.returncode == 1
    assert "humaneval run programs that the model writes: allow it with --allow-code-execution" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_what_is_refused_is_refused_before_a_model_is_loaded(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite without files leaves QuAC out and says so; asked for by its name it is refused."""
    loaded: list[dict[str, Any]] = []

    def load(model: str | None, **options: Any) -> None:
        loaded.append(options)
        raise CierzoError("loaded")

    monkeypatch.setattr(sys.modules["cierzo.cli.options"], "load_llm", load)

    def said(*arguments: str) -> tuple[str, str]:
        done = CliRunner().invoke(evaluate, ["run", *arguments])
        assert isinstance(done.exception, CierzoError), done.exception
        return str(done.exception), done.stderr

    assert "quac can only be measured from files" in said("--tasks", "quac")[0]
    assert "gsm8k has 8 examples, and 9" in said("--tasks", "gsm8k", "--data", str(data), "--fewshot", "9")[0]
    (tmp_path / "run.json").touch()
    assert "never overwritten" in said("--tasks", "boolq", "--data", str(data), "--out", str(tmp_path / "run.json"))[0]
    assert not loaded
    assert said("--tasks", "boolq", "--data", str(data), "--out", str(tmp_path / "other.json")) == ("loaded", "")
    assert loaded[0]["block_size"] == BLOCK_SIZE
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr("cierzo.evaluate.suite.build_all", lambda options, **more: asked.append(options.benchmarks))
    assert said("--allow-code-execution") == (
        "loaded", "QuAC is left out: it can only be measured from files (--data)\n",
    )  # fmt: skip
    assert asked == [tuple(name for name in SUITES["article"] if name != "quac")]


@pytest.mark.heavy
def test_a_process_that_was_killed_goes_on(data: Path, default_gguf: Path, tmp_path: Path) -> None:
    def arguments(out: Path) -> list[str]:
        return [
            str(default_gguf),
            "--tasks",
            "mmlu,gsm8k,boolq",
            "--limit",
            "12",
            "--data",
            str(data),
            "--out",
            str(out),
        ]

    killed, whole = tmp_path / "killed.json", tmp_path / "whole.json"
    partial = killed.with_name("killed.json.partial")
    child = subprocess.Popen([*COMMAND, *arguments(killed)], env={**os.environ, **OFFLINE}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while (not partial.exists() or partial.read_bytes().count(b"\n") < 50) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not killed.exists()
    resumed = cierzo(*arguments(killed))
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after" in resumed.stderr
    assert cierzo(*arguments(whole)).returncode == 0
    assert read_record(killed)["results"] == read_record(whole)["results"]


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    for number, format in enumerate(("q4_1", "float32")):
        write_record(tmp_path / f"{format}.json", record(format, shift=number))
    files = write_report([tmp_path / "q4_1.json", tmp_path / "float32.json"], tmp_path / "report")
    assert {path.name for path in files} == {
        "index.html",
        *(f"{name}.{kind}" for name in ("scores", "sizes", "cost", "formats") for kind in ("png", "svg")),
    }
    for path in files:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        elif path.suffix == ".svg":
            ElementTree.parse(path)
    text = (tmp_path / "report" / "index.html").read_text()
    assert text.count("<svg") == 4
    assert not re.search(r'(?:src|href)="(?!#)', text.replace("xmlns:xlink", ""))
    assert "<b>small</b>" not in text
    assert "&lt;b&gt;small&lt;/b&gt; (q4_1)" in text
    assert "QuAC: a fixture" in text
    assert "PIQA: 90 of 1838 items" in text
    assert "(extrapolated)" in text
    assert "more than 3 &times;" in text
    score = record("q4_1")["results"]["piqa"]
    assert f"{100 * score['score']:.1f} ± {100 * score['stderr']:.1f}" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def pages(tmp_path: Path, *records: dict[str, Any]) -> tuple[str, set[str]]:
    """The text of a report, and its pictures."""
    paths = [tmp_path / f"{n}.json" for n in range(len(records))]
    for path, one in zip(paths, records, strict=True):
        write_record(path, one)
    files = write_report(paths, tmp_path / "report")
    return (tmp_path / "report" / "index.html").read_text(), {p.stem for p in files if p.suffix == ".svg"}


def test_each_cell_is_marked_by_its_own_note(tmp_path: Path) -> None:
    full, part = record("q4"), record("q8")
    full["results"]["piqa"]["of"] = 90
    part["results"]["mmlu"] |= {"shots": 0, "published_shots": 5}
    full["results"]["mmlu"] |= {"shots": 5, "published_shots": 5}
    full["results"]["agieval"] = result("AGI Eval", "aggregated", [1.0, 0.0], shots=[3, 5], published_shots=[3, 5])
    part["results"]["agieval"] = result("AGI Eval", "aggregated", [1.0, 0.0], shots=0, published_shots=[3, 5])
    text, _ = pages(tmp_path, full, part)
    rows = {
        cells[0]: cells[1:]
        for row in re.findall(r"<tr>(.*?)</tr>", text)
        if (cells := re.findall("<td>(.*?)</td>", row))
    }
    assert [cell.endswith("*") for cell in rows["PIQA"][2:4]] == [False, True]
    assert rows["MMLU"][0] == "5-shot, 0-shot"
    assert [cell.split(" ", 3)[-1] for cell in rows["MMLU"][2:4]] == ["(5-shot)", "(0-shot)"]
    assert "PIQA: 90 of 1838 items (&lt;b&gt;small&lt;/b&gt; (q8))" in text
    assert "AGI Eval: 0 examples, published 3 to 5 (" in text
    assert "QuAC: a fixture;" in text  # of both
    legend = re.search(r" † ([^<]*)", text)
    assert legend is not None
    for words in ("Commonsense reasoning without ", "PIQA: 90 of 1838 items", "QuAC: a fixture"):
        assert words in legend[1]


def test_pictures_compare_what_can_be_compared(tmp_path: Path) -> None:
    one, other = record("q4"), record("q8")
    other["results"] = {"piqa": other["results"]["piqa"]}
    text, found = pages(tmp_path, one, other)
    assert found == {"scores", "sizes", "cost", "formats"}
    assert "what all runs have measured: PIQA." in text
    for bare, whole in (("-q4t", ".Q4_1"), ("_F16", "")):
        one["model"]["name"], other["model"]["name"] = f"small{bare}", f"small{whole}"
        (tmp_path / bare).mkdir()
        assert "formats" in pages(tmp_path / bare, one, other)[1]
    other["model"]["name"] = "another"
    (tmp_path / "b").mkdir()
    assert pages(tmp_path / "b", one, other)[1] == {"scores", "sizes", "cost"}  # as many parameters do not make it one
    other["results"] = {"boolq": result("BoolQ", "reading_comprehension", [1.0, 0.0])}
    other["model"]["name"] = one["model"]["name"]
    (tmp_path / "c").mkdir()
    assert pages(tmp_path / "c", one, other)[1] == {"scores", "sizes", "formats"}
    one["results"] = {"piqa": one["results"]["piqa"]}
    (tmp_path / "d").mkdir()
    assert pages(tmp_path / "d", one, other)[1] == {"scores", "sizes"}
    (tmp_path / "e").mkdir()
    assert pages(tmp_path / "e", one, one)[1] == {"scores", "sizes", "cost"}  # the same format twice


def test_texts_of_records_are_no_markup_and_no_formulas(tmp_path: Path) -> None:
    evil = "<i>$x_$\\frac</i>"
    odd = record(evil)
    for place, key in (
        ("model", "sha256"),
        ("model", "instruction_set"),
        ("machine", "commit"),
        ("machine", "processor"),
    ):
        odd[place][key] = evil
    odd["model"]["name"] = odd["results"]["piqa"]["title"] = odd["results"]["piqa"]["note"] = evil
    odd["left_out"] = {"quac": evil}
    odd["results"]["quac"] = result("QuAC", "reading_comprehension", [1.0])
    text, _ = pages(tmp_path, odd)
    assert "<i>" not in text
    assert "100.0 ±" not in text  # of one item


def test_records_are_not_overwritten_nor_mistaken(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_record(path, record("q8"))
    before = path.read_bytes()
    with pytest.raises(CierzoError, match="never overwritten"):
        write_record(path, record("q4"))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "b.json").write_text(json.dumps({"kind": "suite"}))
    with pytest.raises(CierzoError, match="is no record"):
        read_record(tmp_path / "b.json")
    write_report([path], tmp_path / "out")
    with pytest.raises(CierzoError, match="choose another --out"):
        write_report([path], tmp_path / "out")


def test_records_on_filesystems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*ignored: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", link)
    path = tmp_path / "a.json"
    write_whole(path, "one", over=False)
    with pytest.raises(CierzoError, match="is there already"):
        write_whole(path, "two", over=False)
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_errors_of_means() -> None:
    assert mean_and_error([0.0, 1.0, 1.0, 0.0]) == pytest.approx((0.5, (1 / 3 / 4) ** 0.5))
    assert mean_and_error([0.25]) == (0.25, None)
    assert score_and_error([1.0]) == (1.0, None)
    assert score_and_error([0.0, 1.0, 1.0, 0.0]) == mean_and_error([0.0, 1.0, 1.0, 0.0])
    for k in (0.0, 1.0):  # of none or all of eight: as if one of ten, or nine
        assert score_and_error([k] * 8) == pytest.approx((k, (0.1 * 0.9 / 8) ** 0.5))
    assert score_and_error([0.5, 0.5])[1] == 0.0
    assert mean_of([(0.5, 0.03), (0.7, None)]) == (0.6, None)
    assert [plus_minus(1.25), plus_minus(None), plus_minus(None, 1, 4)] == [" ± 1.2", "", " " * 7]
    assert mean_of([(0.5, 0.03), (0.7, 0.04)]) == pytest.approx((0.6, 0.025))
