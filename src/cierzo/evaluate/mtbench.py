"""MT-Bench (arXiv:2306.05685): eighty conversations of two questions, judged by another model, alone or in pairs.

Questions, reference answers and the judge's prompts are read from the data, as FastChat publishes them. The judge is
any server that speaks OpenAI's API.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from cierzo.errors import CierzoError
from cierzo.evaluate.data import rows
from cierzo.evaluate.journal import Journal
from cierzo.evaluate.statistics import mean_and_error, score_and_error
from cierzo.progress import progress_bar

Ask = Callable[[list[dict[str, str]], float], str]
"""Answers a conversation at a temperature."""

_TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""Of answers by category, as FastChat sets them; 0 for the others."""
_WITH_REFERENCE = ("math", "reasoning", "coding")
_RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_RATING_LOOSE = re.compile(r"\[(\d+\.?\d*)\]")
_VERDICT = re.compile(r"\[\[([ABC])\]\]")
_TRIES = 5
"""With pauses between them: what the server asks for, or 1, 2, 4 and 8 seconds."""
_TIMEOUT = 600.0


@dataclass
class Endpoint:
    """A model behind a server that speaks OpenAI's API; counts what it is asked.

    Attributes:
        key: sent as the bearer token.
        max_tokens: of an answer.
        prompt_tokens, answer_tokens: as the server counted them so far.
    """

    url: str
    model: str
    key: str | None = None
    max_tokens: int = 2048
    prompt_tokens: int = 0
    answer_tokens: int = 0
    _client: httpx2.Client = field(init=False, repr=False)

    def __post_init__(self) -> None:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        base = self.url.rstrip("/").removesuffix("/v1")
        try:
            address = httpx2.URL(base)
        except httpx2.InvalidURL:
            address = httpx2.URL("")
        if address.scheme not in ("http", "https") or not address.host:
            raise CierzoError(f"{self.url} is no address of a judge: give --judge http://host:port")
        try:
            self._client = httpx2.Client(base_url=address, headers=headers, timeout=_TIMEOUT)
        except ValueError:  # of the header: it says where, and thereby quotes the key
            raise CierzoError("CIERZO_JUDGE_KEY has characters that no key has") from None

    def __call__(self, messages: list[dict[str, str]], temperature: float) -> str:
        """The answer's text.

        Raises:
            CierzoError: the server cannot be reached, or refuses.
        """
        body = {"model": self.model, "messages": messages, "temperature": temperature, "max_tokens": self.max_tokens}
        reason, pause = "", 0.0
        for tried in range(_TRIES):
            time.sleep(pause)
            pause = 2.0**tried
            try:
                response = self._client.post("/v1/chat/completions", json=body)
            except httpx2.HTTPError as error:
                reason = str(error) or type(error).__name__
                continue
            if response.status_code == 200:
                text = self._taken(response)
                if text is not None:
                    return text
                reason = f"no answer in OpenAI's form: {response.text[:300]}"
                break
            reason = f"status {response.status_code}: {response.text[:300]}"
            if response.status_code < 500 and response.status_code != 429:
                break
            asked = response.headers.get("retry-after", "")
            pause = min(float(asked), _TIMEOUT) if asked.isdecimal() else pause
        raise CierzoError(f"the model {self.model} at {self.url} does not answer: {reason}")

    def _taken(self, response: httpx2.Response) -> str | None:
        """The text of an answer, its tokens counted; None where there is none."""
        try:
            answer = response.json()
            text = answer["choices"][0]["message"]["content"] or ""
            usage = answer.get("usage") or {}
            read, written = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
        except (ValueError, LookupError, TypeError, AttributeError):
            return None
        self.prompt_tokens += read
        self.answer_tokens += written
        return str(text)


@dataclass(frozen=True)
class Bench:
    """What the data hold."""

    questions: list[dict[str, Any]]
    references: dict[int, list[str]]
    prompts: dict[str, dict[str, Any]]

    @property
    def hashes(self) -> dict[str, str]:
        """sha256 of what is asked, what the judge is shown, and what it is told."""
        parts = {"questions": self.questions, "references": self.references, "prompts": self.prompts}
        return {
            name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest() for name, part in parts.items()
        }

    @classmethod
    def read(cls, data: Path, limit: int | None = None) -> "Bench":
        """From `mt_bench/` of a folder of data.

        Raises:
            CierzoError: files are missing, or something in them.
        """
        folder = data / "mt_bench"
        questions = list(rows(folder / "question.jsonl", "question_id", "category", "turns"))[:limit]
        file = folder / "reference_answer_gpt-4.jsonl"
        try:
            references = {r["question_id"]: r["choices"][0]["turns"] for r in rows(file, "question_id", "choices")}
        except (LookupError, TypeError):
            raise CierzoError(f"{file} is not as FastChat publishes it: fetch it again") from None
        prompts = {
            p["name"]: p for p in rows(folder / "judge_prompts.jsonl", "name", "system_prompt", "prompt_template")
        }
        if not questions:
            raise CierzoError(f"{folder / 'question.jsonl'} has no questions")
        for question in questions:
            number = question["question_id"]
            if not isinstance(question["turns"], list) or len(question["turns"]) < 2:
                raise CierzoError(f"{folder / 'question.jsonl'}: question {number} has not two turns")
            if question["category"] in _WITH_REFERENCE and len(references.get(number, ())) < 2:
                raise CierzoError(f"{file} has no reference for question {number}, of {question['category']}")
        return cls(questions, references, prompts)


def answers(bench: Bench, ask: Ask, journal: Journal, name: str) -> dict[int, list[str]]:
    """Both turns' answers of a model, by question."""
    found: dict[int, list[str]] = {}
    with progress_bar(f"answers of {name}", unit="questions") as report:
        for question in bench.questions:
            report(len(found), len(bench.questions))
            key = f"answer {name} {question['question_id']}"
            if key not in journal.answers:
                messages: list[dict[str, str]] = []
                given = []
                for turn in question["turns"]:
                    messages.append({"role": "user", "content": turn})
                    given.append(ask(messages, _TEMPERATURES.get(question["category"], 0.0)))
                    messages.append({"role": "assistant", "content": given[-1]})
                journal.add(key, given)
            found[question["question_id"]] = journal.answers[key]
    return found


def _filled(bench: Bench, name: str, about: dict[str, Any], texts: dict[str, str]) -> list[dict[str, str]]:
    """The judge's messages, by one of the published prompts."""
    if name not in bench.prompts:
        raise CierzoError(f"the judge's prompts have no {name}: fetch judge_prompts.jsonl again")
    prompt = bench.prompts[name]
    reference = bench.references.get(about["question_id"], [])
    known = {f"ref_answer_{n}": text for n, text in enumerate(reference, 1)}
    known |= {f"question_{n}": text for n, text in enumerate(about["turns"], 1)}
    try:
        text = prompt["prompt_template"].format(**known, **texts)
    except (LookupError, ValueError) as error:
        raise CierzoError(f"the judge's prompt {name} asks for {error}, which there is not") from None
    return [{"role": "system", "content": prompt["system_prompt"]}, {"role": "user", "content": text}]


def _prompt_name(kind: str, question: dict[str, Any], turn: int) -> str:
    math = "-math" if question["category"] in _WITH_REFERENCE else ""
    version = "v2" if kind == "pair" and not math else "v1"
    return f"{kind}{math}-{version}{'-multi-turn' * turn}"


def rating(judgement: str) -> float | None:
    """The number that the judge gave, from 1 to 10; None when it gave none."""
    found = _RATING.search(judgement) or _RATING_LOOSE.search(judgement)
    value = float(found[1]) if found else 0.0
    return value if 1 <= value <= 10 else None


def verdict(judgement: str) -> str | None:
    """A, B or C (a tie); None when the judge did not say."""
    found = _VERDICT.search(judgement)
    return found[1] if found else None


def single(bench: Bench, given: dict[int, list[str]], judge: Endpoint, journal: Journal) -> dict[str, Any]:
    """Rate each answer alone, from 1 to 10.

    Returns:
        `score` and `stderr` over questions (a question is the mean of its turns), `turns` (each turn's mean),
        `categories`, `unrated` (answers that the judge gave no rating for), and `ratings`.
    """
    ratings: list[dict[str, Any]] = []
    with progress_bar("judging", unit="answers") as report:
        for question in bench.questions:
            texts = given[question["question_id"]]
            for turn in (0, 1):
                report(len(ratings), 2 * len(bench.questions))
                if turn:
                    asked = {"answer_1": texts[0], "answer_2": texts[1]}
                else:
                    asked = {"question": question["turns"][0], "answer": texts[0]}
                messages = _filled(bench, _prompt_name("single", question, turn), question, asked)
                said = _said(judge, journal, f"single {question['question_id']} {turn}", messages)
                ratings.append(
                    {
                        "question": question["question_id"], "category": question["category"], "turn": turn + 1,
                        "rating": rating(said), "judgement": said,
                    }
                )  # fmt: skip
    return _summary(ratings)


def _summary(ratings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rated = [r for r in ratings if r["rating"] is not None]
    if not rated:
        raise CierzoError("the judge gave no rating at all: choose a judge that follows its prompt")

    def mean(chosen: list[dict[str, Any]]) -> dict[str, Any]:
        value, error = mean_and_error([r["rating"] for r in chosen])
        return {"score": value, "stderr": error, "n": len(chosen)}

    questions = sorted({r["question"] for r in rated})
    each = [mean([r for r in rated if r["question"] == q])["score"] for q in questions]
    score, error = mean_and_error(each)
    return {
        "score": score,
        "stderr": error,
        "turns": {t: mean(own) for t in (1, 2) if (own := [r for r in rated if r["turn"] == t])},
        "categories": {
            c: mean([r for r in rated if r["category"] == c]) for c in sorted({r["category"] for r in rated})
        },
        "unrated": len(ratings) - len(rated),
        "ratings": list(ratings),
    }


def pairwise(
    bench: Bench, first: dict[int, list[str]], second: dict[int, list[str]], judge: Endpoint, journal: Journal
) -> dict[str, Any]:
    """Let the judge choose between two models' answers, in both orders; what it says only in one order is a tie.

    Returns:
        `wins`, `losses` and `ties` of the first model, its `win_rate` (ties are half) and `stderr` over questions,
        `swayed` (verdicts that followed the position), `unjudged`, and `games`.
    """
    games: list[dict[str, Any]] = []
    with progress_bar("judging", unit="pairs") as report:
        for question in bench.questions:
            own, other = first[question["question_id"]], second[question["question_id"]]
            for turn in (0, 1):
                report(len(games), 2 * len(bench.questions))
                said = []
                for order, (a, b) in enumerate(((own, other), (other, own))):
                    if turn:
                        asked = {"answer_a_1": a[0], "answer_a_2": a[1], "answer_b_1": b[0], "answer_b_2": b[1]}
                    else:
                        asked = {"question": question["turns"][0], "answer_a": a[0], "answer_b": b[0]}
                    messages = _filled(bench, _prompt_name("pair", question, turn), question, asked)
                    said.append(_said(judge, journal, f"pair {question['question_id']} {turn} {order}", messages))
                games.append(
                    {"question": question["question_id"], "turn": turn + 1, **outcome(*said), "judgements": said}
                )
    judged = [game for game in games if game["points"] is not None]
    if not judged:
        raise CierzoError("the judge gave no verdict at all: choose a judge that follows its prompt")
    by_question = [[g["points"] for g in judged if g["question"] == q] for q in sorted({g["question"] for g in judged})]
    rate, error = score_and_error([sum(points) / len(points) for points in by_question])
    return {
        "wins": sum(g["points"] == 1 for g in judged),
        "losses": sum(g["points"] == 0 for g in judged),
        "ties": sum(g["points"] == 0.5 for g in judged),
        "win_rate": rate,
        "stderr": error,
        "swayed": sum(g["swayed"] for g in judged),
        "unjudged": len(games) - len(judged),
        "games": games,
    }


def outcome(straight: str, swapped: str) -> dict[str, Any]:
    """Points of the first model (1, 0.5 or 0; None without both verdicts), and whether the position decided."""
    one, other = verdict(straight), verdict(swapped)
    if one is None or other is None:
        return {"points": None, "swayed": False}
    mirrored = {"A": "B", "B": "A", "C": "C"}[other]
    points = {"A": 1.0, "B": 0.0, "C": 0.5}[one] if one == mirrored else 0.5
    return {"points": points, "swayed": one == other and one != "C"}


def _said(judge: Endpoint, journal: Journal, key: str, messages: list[dict[str, str]]) -> str:
    if key not in journal.answers:
        before = judge.prompt_tokens, judge.answer_tokens
        text = judge(messages, 0.0)
        journal.add(key, [text, judge.prompt_tokens - before[0], judge.answer_tokens - before[1]])
    said: str = journal.answers[key][0]
    return said


def spent(journal: Journal) -> tuple[int, int]:
    """Tokens that the judge has read and written for a run, also before it was stopped."""
    said = [entry for key, entry in journal.answers.items() if not key.startswith("answer ")]
    return sum(entry[1] for entry in said), sum(entry[2] for entry in said)
