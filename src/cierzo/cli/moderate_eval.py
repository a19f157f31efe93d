"""What `cierzo moderate eval` does, step by step."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from cierzo.cli.bench import write_whole
from cierzo.guard import data, evaluate, refusals
from cierzo.guard.classifier import Classifier
from cierzo.guard.policy import Policy
from cierzo.progress import progress_bar
from cierzo.version import __version__


def run(
    folder: Path | None,
    own: Sequence[Path],
    policies: Sequence[str],
    classifier: Path | None,
    json_file: Path | None,
    png: Path | None,
    write: Sequence[Path],
) -> None:
    """Measure, print, and write what was asked for."""
    public = data.folder_of(folder)
    sets = [*evaluate.public_sets(public), *(evaluate.Set(path.stem, data.own(path)) for path in own)]
    loaded = [Policy.load(name) for name in policies]
    by = evaluate.methods(Classifier.load(classifier), loaded)
    with progress_bar("judging", unit="methods") as report:
        rows = evaluate.evaluated(sets, by, report)
    answers = refusals.cross_validated(data.xstest_answers(public))
    print("\n".join(evaluate.table([*rows, *answers])))
    found: dict[str, Any] = {
        "date": date.today().isoformat(),
        "version": __version__,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "sets": {one.name: {"texts": len(one.items), "harmful": sum(one.labels)} for one in sets},
        "rows": [{k: v for k, v in asdict(row).items() if k != "curve"} for row in [*rows, *answers]],
    }
    if json_file is not None:
        write_whole(json_file, (json.dumps(found, indent=1) + "\n").encode())
    if png is not None:
        write_whole(png, evaluate.drawn([*rows, *answers]))
    for path in write:
        write_whole(path, with_figures(path, Policy.load(path), rows).encode())


def with_figures(path: Path, policy: Policy, rows: Sequence[evaluate.Row]) -> str:
    """The policy's file with what was measured of it at its end, in place of older figures."""
    import yaml

    kept = path.read_text(encoding="utf-8").split("\nfigures:")[0].rstrip("\n")
    figures: dict[str, Any] = {"measured": date.today().isoformat(), "command": "cierzo moderate eval"}
    for row in rows:
        if row.method.startswith(f"{policy.name}: "):
            shown = {name: round(value[0], 3) for name, value in row.figures.items() if value[0] == value[0]}
            figures.setdefault(row.set, {})[row.method.removeprefix(f"{policy.name}: ")] = shown
    return kept + "\n" + yaml.safe_dump({"figures": figures}, sort_keys=False, default_flow_style=None, width=120)
