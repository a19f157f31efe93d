"""What a model's self-reflection is worth: asked about texts, calibrated on one half, measured on the other."""

import asyncio
import hashlib
import math
from collections.abc import Sequence

from cierzo.async_llm import AsyncLLM
from cierzo.guard.calibrate import fitted, logistic
from cierzo.guard.data import Labelled, part_of
from cierzo.guard.evaluate import Row
from cierzo.guard.judge import Judge
from cierzo.guard.metrics import curve, figures
from cierzo.guard.policy import Platt, Reflection
from cierzo.loading import LoadOptions, load_engine
from cierzo.progress import Report

_TOGETHER = 4
_LONGEST = 300


def reflected(
    model: str | None, reflection: Reflection, sets: dict[str, Sequence[Labelled]], limit: int, report: Report
) -> tuple[str, Platt, list[Row]]:
    """The model's name, its calibration, and its figures on texts that were not calibrated on.

    Args:
        sets: by name; of each, `limit` texts are asked about, half harmful and half not as far as there are as many,
            none of them longer than 300 characters.
    """
    return asyncio.run(_reflected(model, reflection, sets, limit, report))


async def _reflected(
    model: str | None, reflection: Reflection, sets: dict[str, Sequence[Labelled]], limit: int, report: Report
) -> tuple[str, Platt, list[Row]]:
    llm = AsyncLLM(await asyncio.to_thread(load_engine, model, LoadOptions(max_running=_TOGETHER), progress=True))
    try:
        judge = Judge(llm, reflection.model_copy(update={"calibration": {}}))
        chosen = {name: _balanced(items, limit) for name, items in sets.items()}
        total = sum(map(len, chosen.values()))
        logits: dict[str, list[float]] = {name: [] for name in chosen}
        for name, items in chosen.items():
            for start in range(0, len(items), _TOGETHER):
                batch = items[start : start + _TOGETHER]
                logits[name] += await asyncio.gather(*(_logit(llm, judge, item.text) for item in batch))
                report(sum(map(len, logits.values())), total)
    finally:
        await llm.close(drain=False)
    fit = [
        (x, item.harmful)
        for name, items in chosen.items()
        for x, item in zip(logits[name], items, strict=True)
        if part_of(item.text) == "train"
    ]
    platt = fitted([x for x, _ in fit], [y for _, y in fit])
    rows = []
    for name, items in chosen.items():
        left = [(x, i.harmful) for x, i in zip(logits[name], items, strict=True) if part_of(i.text) == "test"]
        scores = [logistic(platt.slope * x + platt.intercept) for x, _ in left]
        labels = [y for _, y in left]
        flags = [score >= reflection.threshold for score in scores]
        rows.append(Row(name, f"{llm.name} reflects", figures(labels, scores, flags), curve(labels, scores)))
    return llm.name, platt, rows


async def _logit(llm: AsyncLLM, judge: Judge, text: str) -> float:
    ids = await llm.encode_chat([{"role": "user", "content": text}])
    p = (await judge.opinion(ids, chat=True)).unacceptable
    p = min(max(p, 1e-9), 1 - 1e-9)
    return math.log(p / (1 - p))


def _balanced(items: Sequence[Labelled], limit: int) -> list[Labelled]:
    """Always the same ones: in the order of their hash, both kinds in turn."""
    short = [item for item in items if len(item.text) <= _LONGEST]
    ordered = sorted(short, key=lambda item: hashlib.sha256(item.text.encode("utf-8", "replace")).digest()[1:])
    kinds = [[i for i in ordered if i.harmful][: limit // 2], [i for i in ordered if not i.harmful][: limit // 2]]
    return [*kinds[0], *kinds[1]]
