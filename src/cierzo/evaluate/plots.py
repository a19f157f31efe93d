"""The pictures of a report, drawn by matplotlib without a screen."""

import math
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cierzo.evaluate import published
from cierzo.evaluate.compare import Run, note, percent, shared, shared_groups
from cierzo.evaluate.equivalent import GROUPS

# Okabe and Ito's colours, which people with any colour vision tell apart.
_OURS = ("#D55E00", "#E69F00", "#CC79A7", "#7A3E00", "#F0E442")
_THEIRS = {"Llama 2 7B": "#B5CDE0", "Llama 2 13B": "#6FA3C8", "Mistral 7B": "#0072B2"}
_STYLE: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "legend.frameon": False,
    "svg.fonttype": "none", "svg.hashsalt": "cierzo", "font.family": ["DejaVu Sans"],
    "text.parse_math": False,  # names of models are no formulas
}  # fmt: skip

_MOST_BARS = 8
"""Benchmarks beside each other."""

Picture = Callable[[Sequence[Run]], Figure]


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _whisker(error: float | None) -> float:
    """Half of the 95 % interval; what has no error gets no whisker."""
    return math.nan if error is None else 1.96 * error


def bars(runs: Sequence[Run]) -> Figure:
    """Scores by benchmark, with 95 % of their sampling error, beside Table 2's rows."""
    names = list(dict.fromkeys(name for run in runs for name in run.results))
    lines = -(-len(names) // _MOST_BARS)
    each = -(-len(names) // lines)
    figure = _figure(max(6, 1.1 * each + 1), 2.4 * lines + 1)
    for axes, start in zip(figure.subplots(lines, 1, squeeze=False).flatten(), range(0, len(names), each), strict=True):
        _bars(axes, runs, names[start : start + each])
        axes.set(ylabel="score (%)", ylim=(0, None), xlim=(-0.6, each - 0.4))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def _bars(axes: Axes, runs: Sequence[Run], names: Sequence[str]) -> None:
    article = published.article_scores()
    count = len(runs) + len(_THEIRS)
    width = 0.84 / count
    for place, run in enumerate(runs):
        here = [n for n in names if n in run.results]
        axes.bar(
            [names.index(n) + (place - (count - 1) / 2) * width for n in here],
            [100 * run.results[n]["score"] for n in here],
            width, label=run.name, color=_OURS[place % len(_OURS)],
            yerr=[_whisker(percent(run.results[n]["stderr"])) for n in here],
            error_kw={"elinewidth": 0.8, "capsize": 1.5},
        )  # fmt: skip
        for n in here:
            if note(run.results[n]):
                top = 100 * run.results[n]["score"] + 1.96 * (percent(run.results[n]["stderr"]) or 0.0)
                axes.text(names.index(n) + (place - (count - 1) / 2) * width, top, "*", ha="center", fontsize=8)
    for place, (model, colour) in enumerate(_THEIRS.items(), len(runs)):
        here = [n for n in names if n in article[model]]
        axes.bar(
            [names.index(n) + (place - (count - 1) / 2) * width for n in here], [article[model][n] for n in here],
            width, label=f"{model} (published)", color=colour,
        )  # fmt: skip
    some = [next(run.results[n] for run in runs if n in run.results) for n in names]
    axes.set_xticks(range(len(names)), [result["title"] for result in some], fontsize=8)


def sizes(runs: Sequence[Run]) -> Figure:
    """Llama 2's scores over its sizes by group, and where the runs' scores meet the curve, with 95 % bands."""
    curves = published.llama2_groups()
    groups = [g for g in GROUPS if any(g in run.groups for run in runs)]
    columns = min(4, len(groups))
    lines = -(-len(groups) // columns)
    figure = _figure(3.1 * columns, 2.7 * lines + 0.6)
    all_axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in all_axes[len(groups) :]:
        axes.set_visible(False)
    for axes, group in zip(all_axes, groups, strict=False):
        _curve(axes, curves[group])
        for place, run in enumerate(runs):
            if group in run.groups:
                _worth(axes, run, group, _OURS[place % len(_OURS)])
        article = published.article_group("Mistral 7B", group)
        if article is not None:
            axes.plot(7.24, article[0], "D", color=_THEIRS["Mistral 7B"], ms=5, label="Mistral 7B (published)")
        axes.set(title=GROUPS[group], xscale="log", xlim=(0.09, 150))
        axes.set_xticks([0.1, 1, 7, 13, 34, 70], ["0.1", "1", "7", "13", "34", "70"])
        axes.minorticks_off()
    for axes in all_axes[: len(groups) : columns]:
        axes.set_ylabel("score (%)")
    figure.supxlabel("parameters (10⁹)", fontsize=9)
    seen = {label: handle for axes in all_axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(seen.values(), seen.keys(), loc="outside upper center", ncols=3)
    return figure


def _curve(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    best: list[float] = []
    for _, score in points:
        best.append(max([score, *best]))
    axes.plot([p for p, _ in points], best, "-", color="#6FA3C8", lw=1.2)
    axes.plot([p for p, _ in points], [s for _, s in points], "o", color="#6FA3C8", ms=4, label="Llama 2 (published)")


def _worth(axes: Axes, run: Run, group: str, colour: str) -> None:
    """A run's point at its own size, and a line to the size that its score is worth: dotted where extrapolated."""
    score, worth = run.groups[group], run.equivalents[group]
    own = run.record["model"]["parameters"] / 1e9
    axes.errorbar(own, score.score, yerr=_whisker(score.error), fmt="s", color=colour, ms=5, capsize=2, label=run.name)
    axes.plot([own, worth.size.params_b], [score.score] * 2, ":" if worth.extrapolated else "-", color=colour, lw=1)
    if score.error is not None:
        axes.axvspan(worth.low.params_b, worth.high.params_b, color=colour, alpha=0.13, lw=0)


def plane(runs: Sequence[Run]) -> Figure:
    """Mean score of what all measured, against what it costs: memory of the weights, tokens a second of one answer."""
    names = shared(runs)
    figure = _figure(8, 3.4)
    by_memory, by_speed = figure.subplots(1, 2, sharey=True)
    for place, run in enumerate(runs):
        colour, mean = _OURS[place % len(_OURS)], run.mean(names)
        error = {"yerr": _whisker(mean.error), "fmt": "s", "color": colour, "ms": 6, "capsize": 2}
        by_memory.errorbar(run.record["model"]["weight_bytes"] / 2**20, mean.score, label=run.name, **error)
        by_speed.errorbar(run.record["speed"]["decode_tokens_per_second"], mean.score, **error)
    by_memory.set(xlabel="weights in memory (MiB)", ylabel="mean score (%)", xscale="log")
    by_speed.set(xlabel="tokens per second, one answer", xscale="log")
    for axes, values in (
        (by_memory, [run.record["model"]["weight_bytes"] / 2**20 for run in runs]),
        (by_speed, [run.record["speed"]["decode_tokens_per_second"] for run in runs]),
    ):
        axes.set_xlim(min(values) / 1.6, max(values) * 1.6)
        axes.set_xticks(sorted(set(values)), [f"{value:,.0f}" for value in sorted(set(values))])
        axes.minorticks_off()
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def formats(runs: Sequence[Run]) -> Figure:
    """The same benchmarks by the format of the weights: scores of groups, with 95 % of their sampling error."""
    groups = shared_groups(runs)
    figure = _figure(max(5, 1.6 * len(groups) + 2), 3.2)
    axes = figure.subplots()
    for place, run in enumerate(runs):
        scores = [run.groups[g] for g in groups]
        shift = 0.12 * (place - (len(runs) - 1) / 2)
        axes.errorbar(
            [n + shift for n in range(len(groups))], [s.score for s in scores],
            yerr=[_whisker(s.error) for s in scores], fmt="o", capsize=3, color=_OURS[place % len(_OURS)],
            label=f"{run.name}, {run.record['model']['weight_bytes'] / 2**20:,.0f} MiB",
        )  # fmt: skip
    axes.set_xticks(range(len(groups)), [GROUPS[g] for g in groups])
    axes.set(ylabel="score (%)", xlim=(-0.6, len(groups) - 0.4))
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def saved(picture: Callable[[], Figure], kind: str) -> bytes:
    """A picture as "png" or "svg"; the same figures give the same bytes."""
    with rc_context(_STYLE):
        figure, file = picture(), BytesIO()
        # Legends of long names may be wider than the axes: the picture grows with them.
        figure.savefig(
            file, format=kind, dpi=150, bbox_inches="tight", metadata={"Date": None} if kind == "svg" else None
        )
    return file.getvalue()
