"""A report of one or several runs: one HTML page that needs nothing else, and its pictures as PNG and SVG."""

import html
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cierzo.errors import CierzoError
from cierzo.evaluate import plots, published
from cierzo.evaluate.compare import Run, named, note, percent, shared, shared_groups, shots_of
from cierzo.evaluate.equivalent import GROUPS, Equivalent, article_rows
from cierzo.evaluate.record import read_record
from cierzo.evaluate.statistics import mean_and_error, plus_minus
from cierzo.files import write_whole

_FORMAT = re.compile(r"[-._](q\d\w*|b?f16|f32)$", re.IGNORECASE)
"""What names of one model in several formats end with: `SmolLM2-135M-Instruct.Q4_1`, `-q4t` of `cierzo quantize`."""

_STYLE = """
body { font: 16px/1.5 Georgia, "Times New Roman", serif; color: #1a1a1a; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: .85rem; margin: 1rem 0; font-variant-numeric: tabular-nums; }
thead th { border-top: 2px solid #000; border-bottom: 1px solid #000; }
tbody tr:last-child td { border-bottom: 2px solid #000; }
th, td { padding: .2rem .7rem; text-align: right; } th:first-child, td:first-child { text-align: left; }
tr.published td { color: #005a92; } figure { margin: 1.5rem 0; } figure svg { width: 100%; height: auto; }
figcaption, .note { font-size: .85rem; color: #444; } .scroll { overflow-x: auto; } code { font-size: .85em; }
"""


def write_report(records: Sequence[Path], out: Path) -> list[Path]:
    """Write `index.html` and the pictures into a new folder.

    Returns:
        The files.

    Raises:
        CierzoError: a record cannot be read, or the folder is there already.
    """
    if out.exists():
        raise CierzoError(f"{out} is there already: choose another --out")
    runs = named([read_record(path) for path in records])
    for path, run in zip(records, runs, strict=True):
        if run.record["kind"] != "suite":
            raise CierzoError(f"{path} is a record of {run.record['kind']}, not of `cierzo eval run`: leave it out")
    files: dict[str, bytes] = {}
    drawn = {}
    for name, picture in _pictures(runs).items():
        for kind in ("png", "svg"):
            data = plots.saved(lambda picture=picture: picture(runs), kind)  # type: ignore[misc]
            files[f"{name}.{kind}"] = data
        drawn[name] = data.decode()
    files["index.html"] = page(runs, drawn).encode()
    try:
        out.mkdir()
    except OSError as error:
        raise CierzoError(f"cannot make the folder {out}: {error.strerror}") from None
    for name, data in files.items():
        write_whole(out / name, data)
    return [out / name for name in files]


def _pictures(runs: Sequence[Run]) -> dict[str, plots.Picture]:
    pictures: dict[str, plots.Picture] = {"scores": plots.bars, "sizes": plots.sizes, "cost": plots.plane}
    if not shared(runs):
        del pictures["cost"]
    models = {(_FORMAT.sub("", run.record["model"]["name"]), run.record["model"]["parameters"]) for run in runs}
    formats = {run.record["model"]["format"] for run in runs}
    if len(models) == 1 and len(formats) > 1 and shared_groups(runs):
        pictures["formats"] = plots.formats
    return pictures


_CAPTIONS = {
    "scores": "Scores by benchmark; whiskers are 95 % of the sampling error. * is not the full set, or not the "
    "published number of examples: see the table. Published rows are of other items and another pipeline.",
    "sizes": "Equivalent model size. Blue: Llama 2's published averages of 7B, 13B, 34B and 70B (another pipeline). A "
    "run's square stands at its own size; its line leads to the size of the Llama 2 that would score the same, dotted "
    "where that lies beyond the published sizes; the band is 95 %.",
    "cost": "What a score costs: memory of the weights, and speed of one answer as measured at the run's beginning. "
    "The mean is over what all runs have measured: {shared}.",
    "formats": "The same model by the format of its weights, group by group; whiskers are 95 % of the sampling error.",
}


def page(runs: Sequence[Run], pictures: dict[str, str]) -> str:
    """The whole page. Pictures are SVG documents, by name."""
    figures = {}
    titles = ", ".join(runs[0].results[name]["title"] for name in shared(runs))
    for name, picture in pictures.items():
        caption = html.escape(_CAPTIONS[name].format(shared=titles))
        figures[name] = f"<figure>{_inline(picture, name)}<figcaption>{caption}</figcaption></figure>"
    title = "Evaluation: " + ", ".join(run.name for run in runs)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        "<h2>Scores</h2>", _scores(runs), _notes(runs), figures["scores"],
        "<h2>Equivalent model size</h2>", _sizes(runs), figures["sizes"], _article(),
    ]  # fmt: skip
    if "cost" in figures:
        parts += ["<h2>Cost and performance</h2>", figures["cost"]]
    if "formats" in figures:
        parts += ["<h2>Formats of the weights</h2>", _formats(runs), figures["formats"]]
    parts += ["<h2>How it was measured</h2>", _about(runs)]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _inline(svg: str, name: str) -> str:
    """A picture inside the page: identifiers are the page's, so each picture's own must differ."""
    svg = svg[svg.index("<svg") :]
    for before in ('id="', "url(#", 'xlink:href="#'):
        svg = svg.replace(before, f"{before}{name}-")
    return svg


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], marked: frozenset[int] = frozenset()) -> str:
    """Cells are HTML."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(
        f"<tr{' class=published' if number in marked else ''}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
        for number, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _percent(score: float, error: float | None) -> str:
    return f"{score:.1f}{plus_minus(error)}"


def _scores(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.results))
    article = {model: row for model, row in published.article_scores().items() if model != "Code Llama 7B"}
    rows = []
    for name in names:
        found = [run.results.get(name) for run in runs]
        first = next(result for result in found if result)
        shots = list(dict.fromkeys(shots_of(result) for result in found if result))
        row = [html.escape(text) for text in (first["title"], ", ".join(shots), first["metric"])]
        for result in found:
            cell = _percent(100 * result["score"], percent(result["stderr"])) if result else ""
            own = f" ({html.escape(shots_of(result))})" if result and len(shots) > 1 else ""
            row.append(cell + "*" * bool(result and note(result)) + own)
        rows.append(row + [f"{scores[name]:.1f}" if name in scores else "" for scores in article.values()])
    header = ["", "examples", "metric", *(html.escape(run.name) for run in runs)]
    header += [f"{model}, published" for model in article]
    return _table(header, rows) + (
        f'<p class="note">Percent, with standard errors. Published: {published.ARTICLE}, by its authors\' pipeline, '
        "whose prompts are not known; here prompts are lm-evaluation-harness's.</p>"
    )


def _notes(runs: Sequence[Run]) -> str:
    """What the marked cells are; of which runs, where not all that have the benchmark share it."""
    of: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for name, result in run.results.items():
            if text := note(result):
                of.setdefault((name, text), []).append(run.name)
    notes = [
        text if len(names) == sum(name in run.results for run in runs) else f"{text} ({', '.join(names)})"
        for (name, text), names in of.items()
    ]
    if not notes:
        return ""
    return f'<p class="note">* {html.escape("; ".join(notes))}.</p>'


def _worth(worth: Equivalent, error: float | None) -> str:
    mark = " (extrapolated)" if worth.extrapolated else ""
    band = "" if error is None else f" [{_size(worth.low.params_b)}, {_size(worth.high.params_b)}]"
    return f"{_size(worth.size.params_b)}{band}{mark}"


def _size(params_b: float) -> str:
    """Parameters, short: beyond the largest model that there is, only that."""
    if params_b > 1000:
        return "&gt; 1,000 B"
    return f"{params_b:.3g} B" if params_b >= 1 else f"{1000 * params_b:.3g} M"


def _times(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio < 100 else f"{ratio:,.0f}"


def _sizes(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        own = run.record["model"]["parameters"] / 1e9
        for group, score in run.groups.items():
            worth = run.equivalents[group]
            rows.append(
                [
                    f"{html.escape(run.name)}: {GROUPS[group]}{'†' if score.missing or score.notes else ''}",
                    _percent(score.score, score.error), _worth(worth, score.error),
                    f"{_times(worth.ratio(own))} &times;",
                ]
            )  # fmt: skip
    missing = dict.fromkeys(
        text
        for run in runs for group, score in run.groups.items()
        for text in ([f"{GROUPS[group]} without {', '.join(score.missing)}"] if score.missing else []) + [*score.notes]
    )  # fmt: skip
    dagger = f" † {html.escape('; '.join(missing))}." if missing else ""
    return _table(["", "score", "Llama 2 of [95 %]", "times its own size"], rows) + (
        f'<p class="note">By the curve of {published.LLAMA2}. "Extrapolated" lies beyond 6.74 B to 68.98 B and says '
        f"little more than smaller or larger.{dagger}</p>"
    )


def _article() -> str:
    """The published rows by the same method, beside what the article says of itself."""
    rows = []
    for row in article_rows():
        cells = [
            f"{worth.ratio(7.24):.2f} &times;{' (extrapolated)' if worth.extrapolated else ''}"
            for worth in (row.two_points, row.bridged, row.direct)
        ]
        rows.append(
            [GROUPS[row.group], _percent(row.score, row.error), *cells, f"{row.claim} &times;" if row.claim else ""]
        )
    header = [
        "Mistral 7B, published",
        "score",
        "Table 2's 7B and 13B",
        "four sizes, bridged",
        "four sizes, as they stand",
        "the article",
    ]
    return _table(header, rows, frozenset(range(len(rows)))) + (
        "<p class=\"note\">Mistral 7B's published rows. Bridged: the straight line that takes Table 2's "
        "Llama 2 7B and 13B to what their own authors published takes the score along; else it is read as it stands. "
        "Commonsense reasoning is the mean "
        "of Table 2's five sets of eight. Errors are the sampling errors of the sets' sizes.</p>"
    )


def _formats(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.results))
    first = runs[0]
    rows = []
    for run in runs[1:]:
        shared = [name for name in names if name in run.results and name in first.results]
        pairs = [
            (a, b)
            for name in shared
            if first.results[name]["prompts"] == run.results[name]["prompts"]
            for a, b in zip(first.results[name]["items"], run.results[name]["items"], strict=True)
        ]
        if pairs:
            mean, error = mean_and_error([b - a for a, b in pairs])
            same = sum(a == b for a, b in pairs)
            rows.append(
                [
                    html.escape(run.name),
                    f"{100 * mean:+.2f}{plus_minus(percent(error), 2)}",
                    f"{100 * same / len(pairs):.1f} %",
                    f"{len(pairs):,}",
                ]
            )
    if not rows:
        return ""
    return _table([f"against {html.escape(first.name)}", "points, paired", "items scored alike", "items"], rows)


def _about(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        record = run.record
        model, machine = record["model"], record["machine"]
        settings = ", ".join(f"{key} {value}" for key, value in record["settings"].items() if key != "benchmarks")
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        facts: dict[str, Any] = {
            "weights": f"{model['parameters'] / 1e6:,.0f} M parameters in {model['format']}",
            "sha256": model["sha256"],
            "machine": f"{machine['processor']}, {machine['cores']} cores",
            "kernels": f"{model['instruction_set']}, {model['threads']} threads",
            "begin-of-text token": "none" if model["begin_of_text"] is None else model["begin_of_text"],
            "settings": settings,
            "left out": "; ".join(record.get("left_out", {}).values()) or "nothing",
            "texts cut at their beginning": record["truncated"],
            "commit": str(machine["commit"])[:13],
            "versions": f"cierzo {machine['cierzo']}, Python {machine['python']}, {versions}",
            "began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record["time"]["began"])),
            "seconds": f"{record['time']['seconds']:,.0f}",
        }
        items = "".join(f"<dt><b>{key}</b></dt><dd>{html.escape(str(value))}</dd>" for key, value in facts.items())
        rows.append(f"<h3>{html.escape(run.name)}</h3><dl>{items}</dl>")
    return "".join(rows)
