"""Text as it comes is the text at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cierzo.engine.stream import TextStream
from cierzo.tokens import Detokenizer, decode
from support.models import ByteTokenizer

TEXT = st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("日本語👩‍👩‍👧é́ "))


@given(st.lists(st.integers(0, 259)))
def test_a_stream_of_any_bytes_equals_decoding_at_once(ids: list[int]) -> None:
    stream = Detokenizer(ByteTokenizer())
    text = "".join(stream.push([token]) for token in ids) + stream.finish()
    assert text == decode(ByteTokenizer(), ids) == bytes(t for t in ids if t < 256).decode(errors="replace")


@given(TEXT)
def test_no_piece_ends_within_a_character(text: str) -> None:
    stream = Detokenizer(ByteTokenizer())
    pieces = [stream.push([byte]) for byte in text.encode()]
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


@given(st.text(alphabet="abc", max_size=40), st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3))
def test_stop_texts_end_the_answer_before_them_and_nothing_is_lost(text: str, stop: list[str]) -> None:
    stream = TextStream(ByteTokenizer(), stop)
    shown = ""
    for byte in text.encode():
        shown += stream.push(byte)
        assert text.startswith(shown)
        if stream.stopped:
            break
    shown += stream.finish()
    # The stop text that is complete first ends the answer, and of those the one that begins first.
    complete = [n for n in range(len(text) + 1) if any(s in text[:n] for s in stop)]
    if complete:
        heard = text[: complete[0]]
        assert shown == heard[: min(heard.find(s) for s in stop if s in heard)]
        assert stream.stopped
    else:
        assert shown == text


class LeadingSpace(ByteTokenizer):
    adds_leading_space = True


@pytest.mark.parametrize(("continues", "text"), [(False, "a b"), (True, " a b")])
def test_the_leading_space_is_taken_once_and_only_from_a_new_text(continues: bool, text: str) -> None:
    ids = [256, *b" a b"]
    assert decode(LeadingSpace(), ids, continues=continues) == text
