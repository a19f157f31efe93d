"""Pieces that wait for a reader come together."""

import asyncio
from typing import Any, cast

import pytest

from cierzo.engine import Delta
from cierzo.errors import EngineError
from cierzo.serve.answers import Answers, Question

FIRST, SECOND = Delta("a", (1,)), Delta("b", (2,))
END = Delta("c", (3,), finish_reason="stop")


def read(*waiting: tuple[int, Delta], n: int = 1) -> tuple[list[tuple[int, Delta]], Exception | None]:
    """What a reader gets who comes when these pieces wait, and what is raised after it."""
    answers = Answers("tiny", cast(Any, None), Question([[1]], cast(Any, None), n=n))
    for each in waiting:
        answers._queue.put_nowait(each)

    async def got() -> tuple[list[tuple[int, Delta]], Exception | None]:
        pieces = []
        try:
            async for each in answers:
                pieces.append(each)
        except Exception as error:
            return pieces, error
        return pieces, None

    return asyncio.run(got())


def test_they_are_one_in_their_order() -> None:
    assert read((0, FIRST), (0, SECOND), (0, END)) == ([(0, Delta("abc", (1, 2, 3), finish_reason="stop"))], None)


def test_answers_are_not_mixed() -> None:
    pieces, error = read((0, FIRST), (1, FIRST), (1, END), (0, SECOND), (0, END), n=2)
    assert error is None
    assert [(index, delta.text) for index, delta in pieces] == [(0, "a"), (1, "ac"), (0, "bc")]


@pytest.mark.parametrize(
    "last", [Delta("", finish_reason="error", error="no memory"), Delta("", finish_reason="cancelled")]
)
def test_what_was_said_before_an_error_is_shown(last: Delta) -> None:
    pieces, error = read((0, FIRST), (0, SECOND), (0, last))
    assert [delta.text for _, delta in pieces] == ["ab"]
    assert isinstance(error, EngineError) if last.error else "shutting down" in str(error)
