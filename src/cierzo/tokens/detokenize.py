"""From token ids to text, all at once or as they come, with the same result."""

import codecs
from collections.abc import Iterable

from cierzo.tokens.interface import Tokenizer


class Detokenizer:
    """Text of a growing list of token ids, never half a character.

    Bytes that are no UTF-8 become U+FFFD as in `bytes.decode(errors="replace")`. With `continues`, the ids go on from
    other text, so the space that a SentencePiece vocabulary puts in front of a text is kept.
    """

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.adds_leading_space and not continues

    def push(self, ids: Iterable[int]) -> str:
        """The text that these further ids complete."""
        data = b"".join(map(self._tokenizer.token_bytes, ids))
        if data and self._strip:
            data, self._strip = data.removeprefix(b" "), False
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What is left when no id follows: U+FFFD for a character that was never completed."""
        return self._decoder.decode(b"", final=True)


def decode(tokenizer: Tokenizer, ids: Iterable[int], *, continues: bool = False) -> str:
    """Text of `ids`; control tokens have none."""
    stream = Detokenizer(tokenizer, continues=continues)
    return stream.push(ids) + stream.finish()
