"""Run benchmarks on a model, through lm-evaluation-harness."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cierzo.errors import CierzoError
from cierzo.evaluate.compare import percent, shots_note, shots_of
from cierzo.evaluate.sandbox import Sandbox
from cierzo.evaluate.statistics import plus_minus, score_and_error
from cierzo.evaluate.tasks import BENCHMARKS, ONLY_FROM_FILES, SUITES, build


@dataclass(frozen=True)
class Options:
    """What is measured, and how; all of it changes the scores.

    Attributes:
        benchmarks: names in `BENCHMARKS`.
        limit: items of each benchmark, from its beginning (of each of its tasks in turn); None for all.
        shots: examples before each question; None for as many as published.
        data: a folder of files; None for the hub.
        chat: ask through the model's chat template.
        seed: of sampled answers.
    """

    benchmarks: tuple[str, ...]
    limit: int | None = None
    shots: int | None = None
    data: Path | None = None
    chat: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.benchmarks if name not in BENCHMARKS]
        if unknown or not self.benchmarks:
            raise CierzoError(f"there is no benchmark {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}")
        if self.data is not None and not self.data.is_dir():
            raise CierzoError(f"--data {self.data} is no folder")


Built = dict[str, dict[str, Any]]
"""The harness's tasks by name, by benchmark."""


def left_out(names: Sequence[str]) -> dict[str, str]:
    """What of a suite cannot be had without files, and why."""
    return {
        name: f"{BENCHMARKS[name].title} is left out: it can only be measured from files (--data)"
        for name in names
        if name in ONLY_FROM_FILES
    }


def chosen(suite: str | None, names: str | None) -> tuple[str, ...]:
    """Names of benchmarks, of a suite or in a list with commas.

    Raises:
        CierzoError: no such suite.
    """
    if names is not None:
        return tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if suite not in SUITES:
        raise CierzoError(f"there is no suite {suite}: there are {', '.join(SUITES)}")
    return SUITES[suite]


def build_all(options: Options, *, allow_code_execution: bool = False) -> Built:
    """The tasks with their data, which need no model.

    Raises:
        CierzoError: data, examples or permission are missing.
    """
    _quiet()
    sandbox = Sandbox() if allow_code_execution and any(BENCHMARKS[n].code for n in options.benchmarks) else None
    return {name: build(name, options.data, options.shots, sandbox) for name in options.benchmarks}


def run_suite(
    lm: Any, options: Options, *, built: Built | None = None, allow_code_execution: bool = False
) -> dict[str, Any]:
    """Scores by benchmark, with everything about how they came.

    Args:
        lm: a model of the harness, such as `cierzo.evaluate.lm.CierzoLM`.
        built: from `build_all`, with the same options.

    Returns:
        For each benchmark: `score` and `stderr` (0..1), `items` (each item's own score), `n` and, of all there are,
        `of`; `shots`, `metric`, `filter`, `note`, `tasks` with their own scores, and `prompts`, a hash of all that was
        asked.
    """
    if built is None:
        built = build_all(options, allow_code_execution=allow_code_execution)
    tasks = {task: object for found in built.values() for task, object in found.items()}
    samples: dict[str, list[int]] | None = None
    if options.limit is not None:
        samples = {}
        for found in built.values():
            samples |= spread(options.limit, {name: len(task.eval_docs) for name, task in found.items()})
        tasks = {name: task for name, task in tasks.items() if samples[name]}
    found = _evaluate(lm, tasks, samples, options.chat)
    return {name: _result(name, built[name], found, options) for name in options.benchmarks}


def spread(limit: int, sizes: dict[str, int]) -> dict[str, list[int]]:
    """The first items of each task, `limit` in all, as evenly as they are there."""
    taken = dict.fromkeys(sizes, 0)
    left = limit
    while left and (open_ := [name for name, size in sizes.items() if taken[name] < size]):
        each = max(1, left // len(open_))
        for name in open_:
            more = min(each, left, sizes[name] - taken[name])
            taken[name] += more
            left -= more
    return {name: list(range(count)) for name, count in taken.items()}


def _quiet() -> None:
    """The harness talks: its bars, and its warnings about what is meant so."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _evaluate(lm: Any, tasks: dict[str, Any], samples: dict[str, list[int]] | None, chat: bool) -> dict[str, Any]:
    """Every item's samples, by task."""
    from lm_eval.evaluator import evaluate

    if samples is not None:
        samples = {name: samples[name] for name in tasks}
    results = evaluate(
        lm, {"tasks": tasks, "groups": {}, "group_map": {}}, samples=samples, bootstrap_iters=0, log_samples=True,
        apply_chat_template=chat, fewshot_as_multiturn=chat, confirm_run_unsafe_code=True,
    )  # fmt: skip
    assert results is not None
    by_task: dict[str, Any] = results["samples"]
    return by_task


def _result(name: str, tasks: dict[str, Any], found: dict[str, Any], options: Options) -> dict[str, Any]:
    benchmark = BENCHMARKS[name]
    prompts = hashlib.sha256()
    items: list[float] = []
    by_task = {}
    for task in tasks:
        kept = [sample for sample in found.get(task, ()) if sample["filter"] == benchmark.filter]
        kept = kept or [sample for sample in found.get(task, ()) if sample["filter"] == "none"]
        for sample in kept:
            prompts.update(json.dumps(sample["arguments"], sort_keys=True, default=str).encode())
        own = [float(sample[benchmark.metric]) for sample in kept]
        if own:
            mean, error = score_and_error(own)
            by_task[task] = {"score": mean, "stderr": error, "n": len(own)}
        items += own
    mean, error = score_and_error(items)
    shots = sorted({int(task.config.num_fewshot or 0) for task in tasks.values()})
    return {
        "title": benchmark.title,
        "group": benchmark.group,
        "score": mean,
        "stderr": error,
        "n": len(items),
        "of": sum(len(task.eval_docs) for task in tasks.values()),
        "shots": shots if len(shots) > 1 else shots[0],
        "published_shots": benchmark.shots,
        "metric": benchmark.metric,
        "filter": benchmark.filter,
        "note": benchmark.note if options.data is not None else None,
        "prompts": prompts.hexdigest(),
        "tasks": by_task if len(by_task) > 1 else {},
        "items": items,
    }


def table(results: dict[str, Any]) -> list[str]:
    """Lines of text, for people: scores in percent with their standard errors."""
    width = max(len(result["title"]) for result in results.values())
    rows = []
    for result in results.values():
        share = f"{result['n']} of {result['of']}" if result["n"] < result["of"] else str(result["n"])
        metric = result["metric"] + ("" if result["filter"] == "none" else f" {result['filter']}")
        line = (
            f"{result['title']:{width}}  {100 * result['score']:5.1f}{plus_minus(percent(result['stderr']), 1, 4)}  "
            f"{metric}, {shots_of(result)}, {share} items"
        )
        notes = [note for note in (result["note"], shots_note(result)) if note]
        rows.append(line + (f"  [{'; '.join(notes)}]" if notes else ""))
    return rows
