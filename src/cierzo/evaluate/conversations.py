"""A run of MT-Bench on one of our models: its answers, the judge's words, and the record."""

import time
from pathlib import Path
from typing import Any

from cierzo.engine import SamplingParams
from cierzo.errors import CierzoError
from cierzo.evaluate.journal import Journal
from cierzo.evaluate.mtbench import Bench, Endpoint, answers, pairwise, single, spent
from cierzo.evaluate.record import (
    about_machine,
    about_model,
    common_settings,
    hash_of,
    lasting,
    read_record,
    write_record,
)
from cierzo.llm import LLM


def judge_model(
    llm: LLM,
    judge: Endpoint,
    bench: Bench,
    path: Path,
    *,
    against: Path | None,
    limit: int | None,
    max_tokens: int,
    seed: int,
    price: tuple[float, float],
    chat_template: str | None = None,
) -> dict[str, Any]:
    """Answer, be judged, and write the record to `path`; goes on where a run of the same name was stopped.

    Args:
        against: a record of another model's answers to the same questions; None to be judged alone.
        price: of a million tokens that the judge reads, and writes.
        chat_template: as it was given to `load_llm`, for the record.

    Raises:
        CierzoError: the judge does not answer, or the other record has other questions.
    """
    other = _answers_of(against, bench) if against is not None else None
    about = about_model(llm)

    def ask(messages: list[dict[str, str]], temperature: float) -> str:
        params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
        return llm.chat(list(messages), params).text

    settings = {
        "judge": judge.model, "judge_url": judge.url, "limit": limit, "max_tokens": max_tokens,
        "judge_max_tokens": judge.max_tokens, "seed": seed,
        "against": None if against is None else {"model": read_record(against)["model"], "sha256": hash_of(against)},
        "asked": bench.hashes, **common_settings(chat_template),
    }  # fmt: skip
    began = time.time()
    with Journal(path.with_name(f"{path.name}.partial"), {**settings, "model": lasting(about)}) as journal:
        given = answers(bench, ask, journal, about["name"])
        if other is None:
            results = single(bench, given, judge, journal)
        else:
            results = pairwise(bench, given, other, judge, journal)
        read, written = spent(journal)
        record = {
            "kind": "mt-bench",
            "settings": settings,
            "model": about,
            "machine": about_machine(),
            "time": {"began": began, "seconds": time.time() - began},
            "judge": {
                "model": judge.model,
                "url": judge.url,
                "prompt_tokens": read,
                "answer_tokens": written,
                "price": {"prompt": price[0], "answer": price[1]},
                "cost": (read * price[0] + written * price[1]) / 1e6,
            },
            "answers": {str(question): texts for question, texts in given.items()},
            "results": results,
        }
        write_record(path, record)
        journal.delete()
    return record


def _answers_of(path: Path, bench: Bench) -> dict[int, list[str]]:
    record = read_record(path)
    if record["kind"] != "mt-bench":
        raise CierzoError(f"{path} is a record of {record['kind']}, not of `cierzo eval mt-bench`")
    given = {int(question): texts for question, texts in record["answers"].items()}
    missing = [q["question_id"] for q in bench.questions if q["question_id"] not in given]
    if missing:
        raise CierzoError(f"{path} has no answers to {len(missing)} of these questions: run it with the same --limit")
    return given
