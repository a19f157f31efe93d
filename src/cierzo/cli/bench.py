"""`cierzo bench serve`: how fast a server answers under load."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cierzo.errors import CierzoError
from cierzo.files import write_whole
from cierzo.progress import progress_bar

if TYPE_CHECKING:
    from cierzo.cli.load import Figures

bench = typer.Typer(no_args_is_help=True, help="Measure.")


@bench.callback()
def _group() -> None:
    """Measure."""


@bench.command()
def serve(
    url: Annotated[str, typer.Argument(help="A server that speaks OpenAI's API; its key in CIERZO_API_KEY.")] = (
        "http://localhost:8000"
    ),
    model: Annotated[str | None, typer.Option(help="A name that it knows; its first model when left out.")] = None,
    clients: Annotated[
        str, typer.Option(help="Numbers of clients that ask at the same time, one run each.")
    ] = "1,4,16",
    requests: Annotated[int, typer.Option(help="Questions of each client in a run.", min=1)] = 4,
    prompt_tokens: Annotated[int, typer.Option(help="Length of a prompt, about.", min=1)] = 256,
    answer_tokens: Annotated[int, typer.Option(help="Length of an answer at most.", min=1)] = 128,
    body: Annotated[str, typer.Option(help="More of each request, as JSON.")] = '{"ignore_eos": true}',
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw them there.")] = None,
) -> None:
    """Load a server with questions that it has not seen, and print how long it takes.

    Servers that do not know `ignore_eos` refuse it: give --body '{}' then, and see how long their answers are.
    """
    try:
        from cierzo.cli.load import Load, run
        from cierzo.cli.remote import RemoteLLM

        if png is not None:
            import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise CierzoError(f"this needs {error.name}: pip install 'cierzo[bench]'") from None
    counts, extra = _counts(clients), _extra(body)
    remote = RemoteLLM(url, model)
    load = Load(remote.url, remote.name, os.environ.get("CIERZO_API_KEY"), prompt_tokens, answer_tokens, extra)
    runs = []
    for count in counts:
        with progress_bar(f"{count} clients", unit="requests") as report:
            runs.append(run(load, count, count * requests, report))
    print("\n".join(table(runs)))
    if json_file is not None:
        about = {
            "url": remote.url,
            "model": remote.name,
            "prompt_tokens": prompt_tokens,
            "answer_tokens": answer_tokens,
        }
        write_whole(json_file, json.dumps({**about, "runs": [asdict(r) for r in runs]}, indent=2) + "\n")
    if png is not None:
        write_whole(png, drawn(runs, remote.name))
    if any(one.failed for one in runs):
        raise CierzoError(f"{sum(one.failed for one in runs)} requests failed: {runs[-1].errors or runs[0].errors}")


def _counts(clients: str) -> list[int]:
    try:
        counts = [int(part) for part in clients.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise CierzoError(f"--clients is a list of numbers like 1,16,64, not {clients!r}")
    return counts


def _extra(body: str) -> dict[str, Any]:
    try:
        extra = json.loads(body)
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise CierzoError(f"--body is a JSON object, not {body!r}")
    return extra


def table(runs: "list[Figures]") -> list[str]:
    """Lines of text, for people."""
    lines = [
        "clients  requests/min  tokens/s  first token p50, p99 (s)  between tokens p50, p99 (ms)  whole p50 (s)  failed"
    ]
    lines += [
        f"{r.clients:7}  {r.requests_per_minute:12.1f}  {r.tokens_per_second:8.1f}  "
        f"{r.first_p50:14.2f} {r.first_p99:9.2f}  {1000 * r.between_p50:18.1f} {1000 * r.between_p99:9.1f}  "
        f"{r.whole_p50:13.2f}  {r.failed:6}"
        for r in runs
    ]
    prompts, answers = (round(getattr(runs[-1], name)) for name in ("prompt_tokens", "answer_tokens"))
    return [*lines, f"prompts of {prompts} tokens, answers of {answers}"]


def drawn(runs: "list[Figures]", title: str) -> bytes:
    """A PNG picture: latency and throughput over the number of clients."""
    from io import BytesIO

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    latency, throughput = figure.subplots(1, 2)
    clients = [r.clients for r in runs]
    latency.plot(clients, [r.first_p50 for r in runs], "o-", label="first token, median")
    latency.plot(clients, [r.whole_p50 for r in runs], "s-", label="whole answer, median")
    latency.set(xlabel="clients", ylabel="seconds", ylim=(0, None))
    latency.legend()
    throughput.plot(clients, [r.tokens_per_second for r in runs], "o-")
    throughput.set(xlabel="clients", ylabel="tokens per second", ylim=(0, None))
    figure.suptitle(title)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()
