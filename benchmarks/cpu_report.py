"""What `cpu.py` makes of its samples: the best setting of each engine, a table for people."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MEASURES = {  # the table's heads, and whether more is better
    "decode": ("decode tok/s", True),
    "prompt": ("prompt tok/s", True),
    "streams": ("streams tok/s", True),
    "deep_prompt": ("deep prompt", True),
    "deep_decode": ("deep decode", True),
    "first_token_s": ("1st token s", False),
    "peak_mib": ("peak MiB", False),
    "streams_peak_mib": ("streams MiB", False),
    "deep_peak_mib": ("deep MiB", False),
}


@dataclass
class Result:
    """What is known of one engine on one model."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    """`setting`, and `measured` or `error`, in the order of the rounds."""
    told: dict[str, Any] = field(default_factory=dict)
    """Versions and flags by the worker's last answer."""

    def best(self, measure: str) -> tuple[float, dict[str, Any]] | None:
        """The best setting's median, and the setting; those that were tried in the first round only are left out."""
        by_setting: dict[str, list[float]] = {}
        for sample in self.samples:
            value = sample.get("measured", {}).get(measure)
            if value is not None:
                by_setting.setdefault(json.dumps(sample["setting"]), []).append(value)
        most = max(map(len, by_setting.values()), default=0)
        medians = [(statistics.median(v), json.loads(setting)) for setting, v in by_setting.items() if len(v) == most]
        choose = max if MEASURES[measure][1] else min
        return choose(medians, key=lambda pair: pair[0]) if medians else None

    def leaders(self) -> list[dict[str, Any]]:
        """Settings that are best at something."""
        found = [best[1] for measure in MEASURES if (best := self.best(measure))]
        return [setting for i, setting in enumerate(found) if setting not in found[:i]]


def summary(
    results: dict[str, Result], limits: dict[str, dict[str, float]], n_bytes: int, n_weights: int
) -> dict[str, Any]:
    """What the table and the JSON line say. Rates are in GB/s, 1e9 bytes, and GOP/s, 1e9 operations, two a weight."""
    engines: dict[str, Any] = {}
    for engine, result in results.items():
        told = {"best": {}, **result.told, "samples": result.samples}
        for name in MEASURES:
            if best := result.best(name):
                told["best"][name] = {"value": round(best[0], 3), "setting": best[1]}
        if "decode" in told["best"]:
            own_bytes = told["flags"].get("weight_bytes", n_bytes)
            told["weights_gb_per_s"] = round(told["best"]["decode"]["value"] * own_bytes / 1e9, 2)
        if "prompt" in told["best"]:
            told["gop_per_s"] = round(told["best"]["prompt"]["value"] * 2 * n_weights / 1e9, 1)
        engines[engine] = told

    def most(ways: dict[str, float], own: str) -> float:
        return float(max([*ways.values(), *(told[own] for told in engines.values() if own in told)]))

    return {
        "read_gb_per_s": most(limits["read"], "weights_gb_per_s"),
        "matrix_gop_per_s": most(limits["matrix"], "gop_per_s"),
        "limits": limits,
        "engines": engines,
    }


def table(found: dict[str, Any]) -> Iterator[str]:
    """The lines for people, of what the JSON line says."""
    yield (
        f"{found['model']}: {found['weight_bytes'] / 1e6:.0f} MB of weights a token; prompt {found['prompt']}, "
        f"decode {found['decode']}, {found['streams']} streams after {found['stream_prompt']} tokens; "
        f"{found['threads']} threads; memory reads {found['read_gb_per_s']:.1f} GB/s, "
        f"matrix products reach {found['matrix_gop_per_s']:.0f} GOP/s"
    )
    shown = [name for name in MEASURES if any(name in told["best"] for told in found["engines"].values())]
    heads = [MEASURES[name][0] for name in shown]
    for name, head in (("prompt", "of GOP/s"), ("decode", "of bandwidth")):
        if name in shown:
            heads.insert(shown.index(name) + 1, head)
    yield f"{'':22}" + "".join(f"{head:>14}" for head in heads)
    for engine, told in found["engines"].items():
        best = told["best"]
        if not best:
            yield f"{engine:22}  not measured: {told['samples'][-1]['error']}"
            continue
        cells = []
        for name in shown:
            cells.append(f"{best[name]['value']:.4g}" if name in best else "-")
            if name == "decode":
                cells.append(f"{told['weights_gb_per_s'] / found['read_gb_per_s']:.0%}" if name in best else "-")
            if name == "prompt":
                cells.append(f"{told['gop_per_s'] / found['matrix_gop_per_s']:.0%}" if name in best else "-")
        yield f"{engine:22}" + "".join(f"{cell:>14}" for cell in cells)
    own = found["engines"].get("cierzo", {}).get("best", {})
    for engine, told in found["engines"].items():
        if engine == "cierzo" or not own or not told["best"]:
            continue
        cells = []
        for name in shown:
            both = name in own and name in told["best"]
            cells.append(f"{own[name]['value'] / told['best'][name]['value']:.2f} x" if both else "-")
            if name in ("decode", "prompt"):
                cells.append("")
        yield f"{'cierzo / ' + engine:22}" + "".join(f"{cell:>14}" for cell in cells)
    for engine, told in found["engines"].items():
        for name, best in told["best"].items():
            if best["setting"]:
                yield f"  {engine}: {MEASURES[name][0]} with {json.dumps(best['setting'])}"
        for sample in told["samples"]:
            if "error" in sample and told["best"]:
                yield f"  {engine}: {json.dumps(sample['setting'])} {sample['error']}"
        if taken := [sample["others_cpu"] for sample in told["samples"] if "others_cpu" in sample]:
            yield f"  {engine}: meanwhile other processes took {min(taken):.0%} to {max(taken):.0%} of the CPU time"
        if layers := told.get("flags", {}).get("layers"):
            yield f"  {engine}: measured with {layers} layers of random weights"
