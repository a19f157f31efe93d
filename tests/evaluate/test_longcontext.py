"""Needles and perplexity by position, with and without a window."""

import gzip
import json
from pathlib import Path

import pytest

from cierzo import LLM
from cierzo.errors import CierzoError
from cierzo.evaluate.longcontext import needle_table, needles, perplexity_by_position, reach, read_texts

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
    with pytest.raises(CierzoError, match="cannot read"):
        read_texts(tmp_path / "d.txt")


def test_too_short_a_text_or_prompt_is_told(smollm2: LLM) -> None:
    with pytest.raises(CierzoError, match="no text has 5000 tokens"):
        needles(smollm2, [TEXT], [5000], [0.5], 1, 0)
    with pytest.raises(CierzoError, match="no room"):
        needles(smollm2, [TEXT], [20], [0.5], 1, 0)
    with pytest.raises(CierzoError, match="no text has 5000 tokens"):
        perplexity_by_position(smollm2, [TEXT], 5000, 1)


@pytest.mark.parametrize("window", [-1])
def test_a_window_is_a_number(default_gguf: Path, window: int) -> None:
    with pytest.raises(CierzoError, match="sliding_window must be at least 0"):
        LLM(default_gguf, sliding_window=window)
