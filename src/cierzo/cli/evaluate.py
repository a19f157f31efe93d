"""`cierzo eval`: how good a model's answers are."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cierzo.cli.options import ChatTemplate, Device, Dtype, Model
from cierzo.errors import CierzoError


class _RunFirst(TyperGroup):
    """`cierzo eval MODEL` is `cierzo eval run MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "-h")):
            args = ["run", *args]
        return super().parse_args(ctx, args)


evaluate = typer.Typer(cls=_RunFirst, help="Measure a model on the article's benchmarks.")


@contextmanager
def needs_extra() -> Iterator[None]:
    """Libraries that are not there are told."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CierzoError(f"this needs {error.name}: pip install 'cierzo[eval]'") from None


@evaluate.command()
def run(
    model: Model = None,
    suite: Annotated[str, typer.Option(help="article (all), or quick (six of them).")] = "article",
    tasks: Annotated[str | None, typer.Option(help="Benchmarks by name, with commas, instead of a suite.")] = None,
    limit: Annotated[int | None, typer.Option(help="Items of each benchmark.", min=1)] = None,
    fewshot: Annotated[int | None, typer.Option(help="Examples before each question, not as published.", min=0)] = None,
    data: Annotated[Path | None, typer.Option(help="A folder with the benchmarks' files, instead of the hub.")] = None,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run the programs that the model writes, in a sandbox.")
    ] = False,
    chat: Annotated[bool, typer.Option("--chat", help="Ask through the model's chat template.")] = False,
    seed: Annotated[int, typer.Option(help="Of sampled answers.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The record; a run that was stopped goes on by the same name.")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    chat_template: ChatTemplate = None,
) -> None:
    """Score a model, print the table, and write a record with all that is needed to repeat it.

    Programs that the model writes are run only with --allow-code-execution, in a sandbox.
    """
    from cierzo.cli.options import load_llm

    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's own bars; read when it is imported
    with needs_extra():
        from cierzo.evaluate.journal import Journal
        from cierzo.evaluate.lm import BLOCK_SIZE, CierzoLM
        from cierzo.evaluate.record import (
            about_machine,
            about_model,
            common_settings,
            lasting,
            new_record,
            speed,
            write_record,
        )
        from cierzo.evaluate.suite import Options, build_all, chosen, left_out, run_suite, table
        from cierzo.evaluate.tasks import BENCHMARKS
    names = chosen(suite, tasks)
    without = {} if tasks or data else left_out(names)
    names = tuple(name for name in names if name not in without)
    options = Options(names, limit, fewshot, data, chat, seed)
    programs = [name for name in names if BENCHMARKS[name].code]
    if programs and not allow_code_execution:
        raise CierzoError(
            f"{', '.join(programs)} run programs that the model writes: allow it with --allow-code-execution, "
            "or choose others with --tasks"
        )
    for note in without.values():
        print(note, file=sys.stderr)
    if out is not None:
        new_record(out)
    with needs_extra():
        built = build_all(options, allow_code_execution=allow_code_execution)
    llm = load_llm(model, dtype=dtype, device=device, chat_template=chat_template, block_size=BLOCK_SIZE)
    about = about_model(llm)
    path = out or Path(f"{about['name']}-{about['format']}-{'tasks' if tasks else suite}.json")
    new_record(path)
    settings = {
        "benchmarks": list(names), "limit": limit, "shots": fewshot, "data": None if data is None else "files",
        "chat": chat, "seed": seed, **common_settings(chat_template),
    }  # fmt: skip
    began, rates = time.time(), speed(llm)
    with Journal(path.with_name(f"{path.name}.partial"), {**settings, "model": lasting(about)}) as journal:
        kept = len(journal.answers)
        if kept:
            print(f"going on after {kept} answers of {journal.path}", file=sys.stderr)
        lm = CierzoLM(llm, seed=seed, journal=journal)
        with needs_extra():
            results = run_suite(lm, options, built=built)
        print("\n".join(table(results)))
        if lm.truncated:
            print(f"{lm.truncated} texts were longer than the context and lost their beginning", file=sys.stderr)
        write_record(
            path,
            {
                "kind": "suite",
                "suite": None if tasks else suite,
                "left_out": without,
                "settings": settings,
                "model": about,
                "machine": about_machine(),
                "time": {"began": began, "seconds": time.time() - began, "answers_kept": kept},
                "speed": rates,
                "truncated": lm.truncated,
                "results": results,
            },
        )
        journal.delete()
    print(f"wrote {path}", file=sys.stderr)


@evaluate.command()
def report(
    records: Annotated[list[Path], typer.Argument(help="Records of `cierzo eval`, as RUN.json.")],
    out: Annotated[Path, typer.Option(help="A new folder for index.html and the pictures.")] = Path("report"),
) -> None:
    """Write a page and pictures: scores, equivalent model size, cost, formats of the weights."""
    with needs_extra():
        from cierzo.evaluate.report import write_report
    for path in write_report(records, out):
        print(path)


@evaluate.command("mt-bench")
def mt_bench(
    model: Model = None,
    data: Annotated[Path, typer.Option(help="A folder with mt_bench/, as FastChat publishes it.")] = Path("data"),
    judge: Annotated[
        str, typer.Option(help="The judge's server, as http://host:port; its key in CIERZO_JUDGE_KEY.")
    ] = "",
    judge_model: Annotated[str, typer.Option(help="The judge's name there.")] = "",
    against: Annotated[
        Path | None, typer.Option(help="A record of another model: judge in pairs, in both orders, instead of alone.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Questions.", min=1)] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 1024,
    judge_max_tokens: Annotated[int, typer.Option(help="Longest answer of the judge.", min=1)] = 2048,
    price: Annotated[
        tuple[float, float], typer.Option(help="Of a million tokens that the judge reads, and writes.")
    ] = (0.0, 0.0),
    seed: Annotated[int, typer.Option(help="Of sampled answers.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The record; a run that was stopped goes on by the same name.")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    chat_template: ChatTemplate = None,
) -> None:
    """Let another model judge a model's answers to MT-Bench: alone from 1 to 10, or against another's."""
    from cierzo.cli.options import load_llm
    from cierzo.evaluate.conversations import judge_model as judged
    from cierzo.evaluate.mtbench import Bench, Endpoint
    from cierzo.evaluate.record import new_record
    from cierzo.evaluate.statistics import plus_minus

    if not judge or not judge_model:
        raise CierzoError("MT-Bench needs a judge: give --judge http://host:port and --judge-model NAME")
    path = out or Path(f"mt-bench-{'pairs' if against else 'alone'}.json")
    new_record(path)
    endpoint = Endpoint(judge, judge_model, os.environ.get("CIERZO_JUDGE_KEY"), judge_max_tokens)
    bench = Bench.read(data, limit)
    llm = load_llm(model, dtype=dtype, device=device, chat_template=chat_template)
    record = judged(
        llm, endpoint, bench, path, against=against, limit=limit, max_tokens=max_tokens, seed=seed, price=price,
        chat_template=chat_template,
    )  # fmt: skip
    result = record["results"]
    if against is None:
        print(f"MT-Bench {result['score']:.2f}{plus_minus(result['stderr'], 2)} of 10, judged by {judge_model}")
        for name, own in result["categories"].items():
            print(f"  {name:12} {own['score']:5.2f}{plus_minus(own['stderr'], 2)}")
    else:
        share = None if result["stderr"] is None else 100 * result["stderr"]
        print(
            f"win rate {100 * result['win_rate']:.1f}{plus_minus(share)} %: {result['wins']} won, "
            f"{result['losses']} lost, {result['ties']} ties ({result['swayed']} by position), judged by {judge_model}"
        )
    print(f"wrote {path}", file=sys.stderr)


@evaluate.command("long-context")
def long_context(
    model: Model = None,
    text: Annotated[Path, typer.Option(help="Texts to hide needles in: JSON lines with `text`, or one text.")] = Path(
        "text.txt"
    ),
    lengths: Annotated[str, typer.Option(help="Of prompts, in tokens, with commas.")] = "512,1024,2048",
    depths: Annotated[
        str, typer.Option(help="Where needles stand: 0 is the beginning, 1 the end.")
    ] = "0,0.25,0.5,0.75,1",
    trials: Annotated[int, typer.Option(help="Needles of each length and depth.", min=1)] = 4,
    documents: Annotated[int, typer.Option(help="Texts whose perplexity is taken by position; 0 for none.", min=0)] = 4,
    sliding_window: Annotated[
        int | None, typer.Option(help="Another window than the model's own, in tokens; 0 for none.", min=0)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of texts and needles.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="The record; a run that was stopped goes on by the same name.")] = Path(
        "long-context.json"
    ),
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Find needles over length and depth, and take perplexity by position; with and without a window."""
    from cierzo.cli.options import load_llm
    from cierzo.evaluate.journal import Journal
    from cierzo.evaluate.longcontext import check, needle_table, needles, perplexity_by_position, reach, read_texts
    from cierzo.evaluate.record import (
        about_machine,
        about_model,
        common_settings,
        hash_of,
        lasting,
        new_record,
        write_record,
    )
    from cierzo.evaluate.statistics import plus_minus

    new_record(out)
    sizes = [int(size) for size in _numbers(lengths, "--lengths", 1, 10**9, whole=True)]
    places = _numbers(depths, "--depths", 0, 1)
    texts = read_texts(text)
    llm = load_llm(model, dtype=dtype, device=device, sliding_window=sliding_window)
    check(llm, texts, sizes)
    about = about_model(llm)
    settings = {
        "lengths": sizes, "depths": places, "trials": trials, "documents": documents, "seed": seed,
        "sliding_window": sliding_window, "text": hash_of(text), **common_settings(None),
    }  # fmt: skip
    began = time.time()
    with Journal(out.with_name(f"{out.name}.partial"), {**settings, "model": lasting(about)}) as journal:
        kept = len(journal.answers)
        if kept:
            print(f"going on after {kept} cells of {journal.path}", file=sys.stderr)
        cells = needles(llm, texts, sizes, places, trials, seed, journal)
        far = reach(llm)
        print("\n".join(needle_table(cells, far)))
        if far is not None:
            print(
                f"{llm.card.window}: nothing farther than {far:,} tokens can reach the end; such cells are in brackets"
            )
        losses = perplexity_by_position(llm, texts, max(sizes), documents, journal=journal) if documents else []
        for row in losses:
            print(f"tokens {row['first']:6,}-{row['last']:<6,}  loss {row['loss']:.3f}{plus_minus(row['stderr'], 3)}")
        write_record(
            out,
            {
                "kind": "long-context",
                "settings": settings,
                "model": about,
                "machine": about_machine(),
                "time": {"began": began, "seconds": time.time() - began, "cells_kept": kept},
                "results": {"needles": cells, "reach": far, "loss_by_position": losses},
            },
        )
        journal.delete()
    print(f"wrote {out}", file=sys.stderr)


def _numbers(text: str, option: str, least: float, most: float, *, whole: bool = False) -> list[float]:
    try:
        numbers = [(int if whole else float)(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(least <= number <= most for number in numbers):
        kind = "whole numbers" if whole else "numbers"
        raise CierzoError(f"{option} is a list of {kind} from {least:g} to {most:g}, with commas, not {text!r}")
    return numbers
