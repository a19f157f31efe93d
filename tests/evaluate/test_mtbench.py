"""MT-Bench by a scripted judge, and by a server of this process."""

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cierzo import LLM
from cierzo.errors import CierzoError
from cierzo.evaluate.conversations import judge_model
from cierzo.evaluate.journal import Journal
from cierzo.evaluate.mtbench import Bench, Endpoint, outcome, pairwise, rating, single, verdict
from cierzo.evaluate.record import read_record
from support.models import tiny_config, tiny_engine
from support.server import served

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write {a} poem.", "Shorter."]},
    {"question_id": 111, "category": "math", "turns": ["What is 1 + 1?", "And 2 + 2?"], "reference": ["2", "4"]},
]
NAMES = [
    f"{kind}{math}-{version}{turn}"
    for kind, version in (("single", "v1"), ("pair", "v2"))
    for math in ("", "-math")
    for turn in ("", "-multi-turn")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MT-Bench's files in their published form, with prompts of our own."""
    data = tmp_path_factory.mktemp("data")
    (data / "mt_bench").mkdir()

    def write(name: str, items: list[dict[str, Any]]) -> None:
        (data / "mt_bench" / name).write_text("".join(json.dumps(item) + "\n" for item in items))

    write("question.jsonl", QUESTIONS)
    write("reference_answer_gpt-4.jsonl", [{"question_id": 111, "choices": [{"index": 0, "turns": ["2", "4"]}]}])
    prompts = []
    for name in NAMES:
        name = name.replace("pair-math-v2", "pair-math-v1")
        pair, math, two = name.startswith("pair"), "math" in name, name.endswith("multi-turn")
        parts = ["{question_1}|{question_2}" if two else "{question}"]
        parts += ["ref {ref_answer_1}"] if math else []
        if pair:
            parts += ["A={answer_a_2} B={answer_b_2}" if two else "A={answer_a} B={answer_b}"]
        else:
            parts += ["given {answer_1}|{answer_2}" if two else "given {answer}"]
        prompts.append(
            {"name": name, "type": "", "system_prompt": f"judge {name}", "prompt_template": " # ".join(parts)}
        )
    write("judge_prompts.jsonl", prompts)
    return data


class Judge(Endpoint):
    """Says what a script says of each prompt."""

    def __init__(self, script: Callable[[str], str]) -> None:
        super().__init__("http://127.0.0.1:1", "scripted")
        self.script, self.prompts = script, list[str]()

    def __call__(self, messages: list[dict[str, str]], temperature: float) -> str:
        self.prompts.append("\n".join(message["content"] for message in messages))
        self.prompt_tokens += 10
        self.answer_tokens += 2
        return self.script(self.prompts[-1])


GIVEN = {81: ["a long poem", "a poem"], 111: ["2", "4"]}
OTHER = {81: ["no", "no"], 111: ["3", "5"]}


def test_each_answer_is_rated(folder: Path, tmp_path: Path) -> None:
    judge = Judge(lambda prompt: "Fine. Rating: [[9]]" if "math" in prompt else "Rating: [[4.5]]")
    with Journal(tmp_path / "j", {}) as journal:
        result = single(Bench.read(folder), GIVEN, judge, journal)
    assert result["score"] == pytest.approx((4.5 + 9) / 2)
    assert result["stderr"] == pytest.approx((9 - 4.5) / 2)
    assert result["categories"]["math"] == {"score": 9.0, "stderr": 0.0, "n": 2}
    assert result["turns"][1]["n"] == 2
    assert result["unrated"] == 0
    assert judge.prompts[0] == "judge single-v1\nWrite {a} poem. # given a long poem"
    assert judge.prompts[3] == "judge single-math-v1-multi-turn\nWhat is 1 + 1?|And 2 + 2? # ref 2 # given 2|4"


def test_an_answer_without_a_rating_is_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    judge = Judge(lambda prompt: "Rating: [[7]]" if "multi" in prompt else "I like it")
    with Journal(tmp_path / "j", {}) as journal:
        result = single(Bench.read(folder), GIVEN, judge, journal)
    assert (result["score"], result["unrated"]) == (7.0, 2)
    with Journal(tmp_path / "k", {}) as journal, pytest.raises(CierzoError, match="gave no rating at all"):
        single(Bench.read(folder), GIVEN, Judge(lambda prompt: "hm"), journal)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Rating: [[8]]", 8.0),
        ("[[7.5]] or so", 7.5),
        ("Rating: [6]", 6.0),
        ("8 of 10", None),
        ("[[11]]", None),
        ("[[0]]", None),
    ],
)
def test_ratings_are_read(said: str, expected: float | None) -> None:
    assert rating(said) == expected


def test_positions_are_swapped(folder: Path, tmp_path: Path) -> None:
    """A judge that prefers the longer answer, one that prefers what comes first, and one that prefers nothing."""

    def longer(prompt: str) -> str:
        found = re.search(r"A=(.*) B=(.*)", prompt)
        assert found is not None
        sizes = [len(text) for text in found.groups()]
        return "[[C]]" if sizes[0] == sizes[1] else f"[[{'AB'[sizes[1] > sizes[0]]}]]"

    scripts: list[Callable[[str], str]] = [longer, lambda prompt: "[[A]]", lambda prompt: "[[C]]"]
    results = []
    for number, script in enumerate(scripts):
        with Journal(tmp_path / str(number), {}) as journal:
            results.append(pairwise(Bench.read(folder), GIVEN, OTHER, Judge(script), journal))
    assert [(r["wins"], r["losses"], r["ties"], r["swayed"]) for r in results] == [
        (2, 0, 2, 0),
        (0, 0, 4, 4),
        (0, 0, 4, 0),
    ]
    assert [r["win_rate"] for r in results] == [0.75, 0.5, 0.5]
    assert results[0]["stderr"] == pytest.approx(0.25)


def test_verdicts_of_both_orders() -> None:
    assert outcome("[[A]]", "[[B]]") == {"points": 1.0, "swayed": False}
    assert outcome("[[B]]", "[[A]]") == {"points": 0.0, "swayed": False}
    assert outcome("[[A]]", "[[A]]") == {"points": 0.5, "swayed": True}
    assert outcome("[[A]]", "[[C]]") == {"points": 0.5, "swayed": False}
    assert outcome("[[A]]", "good") == {"points": None, "swayed": False}
    assert verdict("so: [[B]].") == "B"


@contextmanager
def endpoint(answers: list[tuple[int, Any]], **headers: str) -> Iterator[tuple[str, list[Any]]]:
    """A server that gives these answers in turn, and what it was sent."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(
                (self.headers["authorization"], json.loads(self.rfile.read(int(self.headers["content-length"]))))
            )
            status, body = answers[min(len(seen), len(answers)) - 1]
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, without waiting."""
    found: list[float] = []
    monkeypatch.setattr("cierzo.evaluate.mtbench.time.sleep", found.append)
    return found


def test_an_endpoint_is_asked_again_and_counted(pauses: list[float]) -> None:
    good = {"choices": [{"message": {"content": "[[5]]"}}], "usage": {"prompt_tokens": 12, "completion_tokens": 3}}
    with endpoint([(503, {}), (200, good)]) as (url, seen):
        judge = Endpoint(f"{url}/v1", "judge", key="k")
        assert judge([{"role": "user", "content": "?"}], 0.0) == "[[5]]"
        assert (judge.prompt_tokens, judge.answer_tokens) == (12, 3)
        assert seen[0][0] == "Bearer k"
        assert seen[1][1]["temperature"] == 0
    with endpoint([(401, {"error": "no key"})]) as (url, seen):
        with pytest.raises(CierzoError, match="status 401"):
            Endpoint(url, "judge")([{"role": "user", "content": "?"}], 0.0)
        assert len(seen) == 1
    with pytest.raises(CierzoError, match="does not answer"):
        Endpoint("http://127.0.0.1:1", "judge")([{"role": "user", "content": "?"}], 0.0)


def test_a_busy_judge_is_left_alone_for_a_while(pauses: list[float]) -> None:
    for headers, expected in (({}, [0, 1, 2, 4, 8]), ({"retry_after": "7"}, [0, 7, 7, 7, 7])):
        pauses.clear()
        with endpoint([(429, {})], **headers) as (url, seen):
            with pytest.raises(CierzoError, match="status 429"):
                Endpoint(url, "judge")([{"role": "user", "content": "?"}], 0.0)
            assert len(seen) == 5
        assert pauses == expected


@pytest.mark.parametrize(
    "said",
    [{}, [], None, "text", {"choices": []}, {"choices": [{"message": None}]}, b"<html>", b"\xff",
     {"choices": [{"message": {"content": "[[5]]"}}], "usage": {"prompt_tokens": "many"}}],
)  # fmt: skip
def test_what_is_no_answer_is_told(said: Any, pauses: list[float]) -> None:
    with (
        endpoint([(200, said)]) as (url, seen),
        pytest.raises(CierzoError, match="does not answer: no answer in OpenAI's form"),
    ):
        Endpoint(url, "judge")([{"role": "user", "content": "?"}], 0.0)
    assert len(seen) == 1


@pytest.mark.parametrize("url", ["judge", "http://", "ftp://host", "http://host:port", "\x00"])
def test_a_judge_has_an_address(url: str) -> None:
    with pytest.raises(CierzoError, match="is no address of a judge: give --judge http://host:port"):
        Endpoint(url, "judge")


def test_a_key_that_is_none_is_not_shown() -> None:
    with pytest.raises(CierzoError, match="CIERZO_JUDGE_KEY has characters") as raised:
        Endpoint("http://host", "judge", key="sécret")
    assert "cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("question", '{"question_id": 81, "category": "writing"}', "question.jsonl: line 1 has no turns"),
        ("question", '{"question_id": 81, "category": "writing", "turns": ["a"]}', "question 81 has not two turns"),
        (
            "question",
            '{"question_id": 9, "category": "math", "turns": ["a", "b"]}',
            "no reference for question 9, of math",
        ),
        ("question", "", "has no questions"),
        ("judge_prompts", '{"name": "single-v1"}', "line 1 has no system_prompt, prompt_template"),
        ("reference_answer_gpt-4", '{"question_id": 111, "choices": []}', "not as FastChat publishes it"),
    ],
)
def test_files_that_lack_something(folder: Path, tmp_path: Path, file: str, content: str, told: str) -> None:
    shutil.copytree(folder / "mt_bench", tmp_path / "mt_bench")
    (tmp_path / "mt_bench" / f"{file}.jsonl").write_text(content)
    with pytest.raises(CierzoError, match=told):
        Bench.read(tmp_path)


def test_a_prompt_with_other_fields_is_told(folder: Path, tmp_path: Path) -> None:
    bench = Bench.read(folder)
    bench.prompts["single-v1"] = bench.prompts["single-v1"] | {"prompt_template": "{mystery}"}
    with Journal(tmp_path / "j", {}) as journal, pytest.raises(CierzoError, match="single-v1 asks for 'mystery'"):
        single(bench, GIVEN, Judge(lambda prompt: "[[5]]"), journal)


def test_a_record_that_goes_on_and_a_pair(smollm2: LLM, folder: Path, tmp_path: Path) -> None:
    bench = Bench.read(folder)
    settings: dict[str, Any] = {"limit": None, "max_tokens": 8, "seed": 0, "price": (2.0, 10.0)}
    path = tmp_path / "alone.json"
    lazy = Judge(lambda prompt: "[[6]]")
    lazy.script = lambda prompt: (_ for _ in ()).throw(KeyboardInterrupt) if len(lazy.prompts) > 2 else "[[6]]"
    with pytest.raises(KeyboardInterrupt):
        judge_model(smollm2, lazy, bench, path, against=None, **settings)
    judge = Judge(lambda prompt: "[[6]]")
    changed = Bench(bench.questions, {111: ["3", "4"]}, bench.prompts)
    with pytest.raises(CierzoError, match=r"other settings \(asked.references\)"):
        judge_model(smollm2, judge, changed, path, against=None, **settings)
    with pytest.raises(CierzoError, match=r"other settings \(chat_template\)"):
        judge_model(smollm2, judge, bench, path, against=None, chat_template="chatml", **settings)
    record = judge_model(smollm2, judge, bench, path, against=None, **settings)
    assert len(judge.prompts) == 2  # two of four were judged before
    assert record["judge"]["prompt_tokens"] == 40
    assert record["judge"]["price"] == {"prompt": 2.0, "answer": 10.0}
    assert record["settings"]["judge_max_tokens"] == 2048
    assert record["judge"]["cost"] == pytest.approx((40 * 2 + 8 * 10) / 1e6)
    assert record["results"]["score"] == 6.0
    assert set(read_record(path)["answers"]) == {"81", "111"}
    assert set(record["settings"]["asked"]) == {"questions", "references", "prompts"}
    pair = judge_model(smollm2, Judge(lambda p: "[[C]]"), bench, tmp_path / "pair.json", against=path, **settings)
    assert pair["results"]["win_rate"] == 0.5
    assert pair["results"]["ties"] == 4


def test_our_own_server_is_a_judge(folder: Path, tmp_path: Path) -> None:
    """A tiny random model judges nothing well, which is told; its tokens are counted."""
    with served(tiny_engine(tiny_config())) as server:
        judge = Endpoint(server.url, "tiny", max_tokens=8)
        with Journal(tmp_path / "j", {}) as journal, pytest.raises(CierzoError, match="gave no rating at all"):
            single(Bench.read(folder), GIVEN, judge, journal)
        assert len(journal.answers) == 4
    assert judge.prompt_tokens > 100
    assert 4 <= judge.answer_tokens <= 32
