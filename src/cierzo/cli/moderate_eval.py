"""What `cierzo moderate eval` does, step by step."""

import json
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from cierzo.errors import CierzoError
from cierzo.files import write_whole
from cierzo.guard import data, evaluate, refusals
from cierzo.guard.classifier import Classifier
from cierzo.guard.policy import Platt, Policy
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
    asked: tuple[str, int] | None = None,
    read: bool = True,
) -> None:
    """Measure, print, and write what was asked for.

    `asked` is a model and the number of texts it is asked about; with `read`, it or the default model reads answers.
    """
    public = data.folder_of(folder)
    sets = [*evaluate.public_sets(public), *(evaluate.Set(path.stem, data.own(path)) for path in own)]
    loaded = [Policy.load(name) for name in policies]
    ours = Classifier.load(classifier)
    by = evaluate.methods(ours, loaded)
    # First: a model that cannot be had must not cost what was judged before.
    answers = _refusals(data.xstest_answers(public), asked and asked[0], read)
    with progress_bar("judging", unit="methods") as report:
        rows = evaluate.evaluated(sets, by, report)
    categories = evaluate.by_category(ours, sets)
    calibrated = None
    if asked is not None:
        name, platt, reflections = _asked(*asked, loaded, public)
        calibrated = (name, platt)
        answers = [*answers, *reflections]
    print("\n".join(evaluate.table([*rows, *categories, *answers])))
    found: dict[str, Any] = {
        "date": date.today().isoformat(),
        "version": __version__,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "sets": {one.name: {"texts": len(one.items), "harmful": sum(one.labels)} for one in sets},
        "rows": [{k: v for k, v in asdict(row).items() if k != "curve"} for row in [*rows, *categories, *answers]],
    }
    if json_file is not None:
        write_whole(json_file, json.dumps(found, indent=1) + "\n")
    if png is not None:
        write_whole(png, evaluate.drawn([*rows, *answers]))
    for path in write:
        whole = with_figures(path, Policy.load(path), rows)
        write_whole(path, whole if calibrated is None else with_calibration(whole, *calibrated))


def _refusals(answers: Sequence[data.Answered], model: str | None, read: bool) -> list[evaluate.Row]:
    if not read:
        return refusals.cross_validated(answers)
    import numpy as np

    from cierzo.guard.states import StateReader
    from cierzo.weights.pull import resolve_model

    reader, states = StateReader(resolve_model(model, progress=True)), []
    with progress_bar("reading", unit="answers") as report:
        for number, one in enumerate(answers, 1):
            states.append(reader.answer(one.question, one.answer))
            report(number, len(answers))
    return refusals.cross_validated(answers, np.stack(states), reader.name)


def _asked(model: str, limit: int, policies: Sequence[Policy], public: Path) -> tuple[str, Platt, list[evaluate.Row]]:
    """The model's name, its calibration and its figures, by the first policy that asks a model."""
    from cierzo.guard.reflected import reflected

    reflection = next((each.reflection for each in policies if each.reflection is not None), None)
    if reflection is None:
        raise CierzoError("none of the policies asks a model: name one with a `reflection` by --policy")
    sets: dict[str, Sequence[data.Labelled]] = {"openai": data.openai_moderation(public), "xstest": data.xstest(public)}
    with progress_bar("asking", unit="texts") as report:
        return reflected(model, reflection, sets, limit, report)


def with_calibration(policy: str, name: str, platt: Platt) -> str:
    """The policy's text with a model's calibration, in place of an older one; as it is if it asks no model.

    Raises:
        CierzoError: its `calibration` is not written as a model a line.
    """
    head = re.search(r"^reflection: *\n", policy, re.M)
    if head is None:
        return policy
    line = f"    {json.dumps(name)}: {{slope: {platt.slope}, intercept: {platt.intercept}}}\n"
    kept = re.sub(rf"^    [\"']?{re.escape(name)}[\"']?:.*\n", "", policy, flags=re.M)
    if listed := re.search(r"^  calibration: *\n", kept, re.M):
        return kept[: listed.end()] + line + kept[listed.end() :]
    if re.search(r"^  calibration:", kept, re.M):
        raise CierzoError("write the policy's calibration as a model a line, so that one can be added")
    return kept[: head.end()] + "  calibration:\n" + line + kept[head.end() :]


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
