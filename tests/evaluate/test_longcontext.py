"""Needles and perplexity by position, with and without a window."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cierzo import LLM
from cierzo.cli.evaluate import evaluate
from cierzo.errors import CierzoError
from cierzo.evaluate.journal import Journal
from cierzo.evaluate.longcontext import check, needle_table, needles, perplexity_by_position, reach, read_texts

TEXT = "The keeper walked along the shore and counted the gulls, and the wind went with him all the way home. " * 60


def test_needles_near_the_end_are_found_and_those_out_of_reach_are_not(default_gguf: Path, smollm2: LLM) -> None:
    windowed = LLM(default_gguf, cache_tokens=2048, sliding_window=4)
    assert windowed.config.windowed
    assert reach(smollm2) is None
    assert reach(windowed) == 30 * 3
    cells = needles(smollm2, [TEXT], [160], [0.0, 1.0], 2, 0)
    assert [cell["trials"] for cell in cells] == [2, 2]
    assert cells[0]["distance"] > 91 > 30 > cells[1]["distance"]
    assert cells[1]["found"] == 1.0
    blind = needles(windowed, [TEXT], [160], [0.0, 1.0], 2, 0)
    assert [cell["found"] for cell in blind] == [0.0, 0.0]
    assert "(0%)" in needle_table(blind, reach(windowed))[1]
    assert "(" not in needle_table(blind, reach(windowed))[2]


def test_what_is_out_of_reach_changes_nothing(default_gguf: Path) -> None:
    """What the model says is bit for bit the same, whatever stood beyond its windows' reach."""
    llm = LLM(default_gguf, cache_tokens=4096, sliding_window=2)
    far = reach(llm)
    assert far == 30
    ids = llm.tokenizer.encode(TEXT)[:128]
    changed = [*reversed(ids[:64]), *ids[64:]]
    one, other = llm.score([ids, changed], first=1)
    assert one[64 + far :] == other[64 + far :]
    assert one[64 : 64 + far - 1] != other[64 : 64 + far - 1]


def test_loss_falls_where_text_repeats(smollm2: LLM) -> None:
    rows = perplexity_by_position(smollm2, [TEXT, TEXT[7:]], 129, 2, bins=4)
    assert [(row["first"], row["last"]) for row in rows] == [(1, 32), (33, 64), (65, 96), (97, 128)]
    assert rows[-1]["loss"] < rows[0]["loss"] / 4
    assert all(row["documents"] == 2 for row in rows)


def test_texts_are_read(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps({"id": 1, "text": "one"}) + "\n")
    (tmp_path / "b.txt").write_text("two\nlines")
    (tmp_path / "c.txt").write_text("")
    assert read_texts(tmp_path / "a.jsonl.gz") == ["one"]
    assert read_texts(tmp_path / "b.txt") == ["two\nlines"]
    with pytest.raises(CierzoError, match="has no texts"):
        read_texts(tmp_path / "c.txt")
    with pytest.raises(CierzoError, match=r"cannot read .*d.txt: No such file or directory: --text takes JSON lines"):
        read_texts(tmp_path / "d.txt")
    (tmp_path / "e.txt").write_bytes(b"caf\xe9")
    with pytest.raises(CierzoError, match=r"e\.txt is no UTF-8 text"):
        read_texts(tmp_path / "e.txt")
    (tmp_path / "f.jsonl.gz").write_bytes((tmp_path / "a.jsonl.gz").read_bytes()[:-12])
    with pytest.raises(CierzoError, match=r"f\.jsonl\.gz is broken or ends too early"):
        read_texts(tmp_path / "f.jsonl.gz")


def test_too_short_a_text_or_prompt_is_told(smollm2: LLM) -> None:
    with pytest.raises(CierzoError, match="no text has 5000 tokens"):
        needles(smollm2, [TEXT], [5000], [0.5], 1, 0)
    with pytest.raises(CierzoError, match="no room"):
        needles(smollm2, [TEXT], [20], [0.5], 1, 0)
    with pytest.raises(CierzoError, match="no text has 5000 tokens"):
        perplexity_by_position(smollm2, [TEXT], 5000, 1)


def test_all_lengths_are_looked_at_before_the_first_is_asked(smollm2: LLM) -> None:
    assert smollm2.max_seq_len is not None
    check(smollm2, ["short", TEXT], [160, 320])
    for lengths, told in (
        ([160, 20], "a prompt of 20 tokens has no room"),
        (
            [160, smollm2.max_seq_len - 11],
            f"answer of 12 pass the model's limit of {smollm2.max_seq_len}: lower --lengths",
        ),
        ([160, 5000], "no text has 5000 tokens"),
    ):
        with pytest.raises(CierzoError, match=told):
            check(smollm2, [TEXT], lengths)


class Killed(BaseException):
    """The process ends here."""


def test_a_run_that_was_killed_goes_on(smollm2: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(journal: Journal | None) -> tuple[list[Any], list[Any]]:
        cells = needles(smollm2, [TEXT], [96, 128], [0.0, 1.0], 2, 3, journal)
        return cells, perplexity_by_position(smollm2, [TEXT, TEXT[7:]], 65, 2, bins=4, journal=journal)

    whole = run(None)
    asked = []
    for work, left, kept in (("generate", 3, 3), ("score", 1, 5), ("score", 9, 6)):
        with Journal(tmp_path / "j", {}) as journal, monkeypatch.context() as patch:
            own = getattr(smollm2, work)

            def dying(*arguments: Any, left: list[int] = [left], own: Any = own, **named: Any) -> Any:  # noqa: B006
                asked.append(own.__name__)
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return own(*arguments, **named)

            patch.setattr(smollm2, work, dying)
            if kept < 6:
                with pytest.raises(Killed):
                    run(journal)
            else:
                assert run(journal) == whole
            assert len(journal.answers) == kept
    assert asked == ["generate"] * 4 + ["score"] * 3


def test_lengths_are_whole_numbers(tmp_path: Path) -> None:
    for option, value, kind in (("--lengths", "512.5", "whole numbers"), ("--depths", "2", "numbers")):
        told = CliRunner().invoke(evaluate, ["long-context", option, value, "--out", str(tmp_path / "o.json")])
        assert isinstance(told.exception, CierzoError)
        assert f"{option} is a list of {kind} from" in str(told.exception)


@pytest.mark.parametrize("window", [-1])
def test_a_window_is_a_number(default_gguf: Path, window: int) -> None:
    with pytest.raises(CierzoError, match="sliding_window must be at least 0"):
        LLM(default_gguf, sliding_window=window)
