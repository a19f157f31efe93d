"""Texts as people read them: disguises taken off before they are judged, hidden ones found, long ones cut in spans."""

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterator

SPAN = 600
"""Characters that are judged at once: a sentence must count, whatever stands around it."""
OVERLAP = 150
_DEEPEST = 3

# Letters that look like Latin ones and that NFKC leaves alone (Unicode TS 39, the part that keyboards reach).
_LOOK_ALIKES = str.maketrans(
    dict(
        zip(
            "аеорсухѕіјһԁӏԛԝьвкмнтгпАВЕКМНОРСТУХЅІЈαβγδεηικνορτυχωΑΒΕΖΗΙΚΜΝΟΡΤΥΧıłøđħŧɑɡɩɪʀʏᴀᴄᴅᴇᴊᴋᴍɴᴏᴘᴛᴜᴠᴡᴢ",
            "aeopcyxsijhdlqwbbkmhtrnabekmhopctyxsijaβydeniknoptuxwabezhikmnoptyxilodhtagiiryacdejkmnoptuvwz",
            strict=True,
        )
    )
    | {"β": "b", "ß": "ss", "æ": "ae", "œ": "oe"}
    | {chr(code): "" for code in (*range(32), 127) if chr(code) not in "\n\t\r"}
)
_LEET = str.maketrans("013457@$!|", "oieastasil")
_LEET_INSIDE = re.compile(r"[^\W\d_][013457@$!|]+[^\W\d_]|[$@]")
_LONGEST_WORD = 40
# Bounded, so that a long text cannot be tried from every letter to its end.
_SPACED = re.compile(r"(?<![^\W_])[^\W\d_]([ .\-_*]{1,2})(?:[^\W\d_]\1){2,64}[^\W\d_](?![^\W_])")
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/_-]{4}[\r\n ]{0,2}){4,}(?:[A-Za-z0-9+/_-]{2,3}={0,2})?")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}[ :]?){12,}")


def normalised(text: str) -> str:
    """The text in small Latin letters as far as it can be read so, without what cannot be seen.

    Compatibility forms (full-width, mathematical, circled letters) become plain (NFKD); accents, zero-width characters
    and direction marks go; look-alike letters, digits within words and s p a c e d letters are read as what they
    look like.
    """
    if not text.isascii():
        # Marks go before NFKD as well: it sorts a run of them in quadratic time.
        text = _visible(unicodedata.normalize("NFKD", _visible(text)))
    text = text.translate(_LOOK_ALIKES).lower().translate(_LOOK_ALIKES)
    text = _SPACED.sub(_joined, text)
    return " ".join(word.translate(_LEET) if _is_leet(word) else word for word in text.split())


def _visible(text: str) -> str:
    """Without marks, and without what prints nothing."""
    return "".join(
        c
        for c in text
        if not unicodedata.combining(c) and (unicodedata.category(c) not in ("Cf", "Mn", "Me", "Cc") or c in "\n\t\r")
    )


def _joined(spaced: re.Match[str]) -> str:
    """The word that spaced letters spell; also without an `a` or `i` at its ends, which may have been a word before."""
    word = spaced[0].replace(spaced[1], "")
    return " ".join(dict.fromkeys([word, word.lstrip("ai") or word, word.rstrip("ai") or word]))


def _is_leet(word: str) -> bool:
    """Mostly letters, with something between them that stands for one; not a version, a time or a size."""
    if word.isalpha() or len(word) > _LONGEST_WORD:
        return False
    return sum(c.isalpha() for c in word) * 2 > len(word) and _LEET_INSIDE.search(word) is not None


def hidden(text: str) -> list[str]:
    """What is written in base64 or hexadecimal within a text, as one text; then what that hides in its turn."""
    levels: list[str] = []
    for _ in range(_DEEPEST):
        text = " ".join(dict.fromkeys(_decoded(text)))
        if not text:
            break
        levels.append(text)
    return levels


def _decoded(text: str) -> Iterator[str]:
    for match in _BASE64.finditer(text):
        # A word in front may look like base64 too and shift what follows: try every line and run by itself as well.
        runs = [match[0]] if not re.search(r"\s", match[0]) else [re.sub(r"\s", "", match[0]), *match[0].split()]
        for run in runs:
            data = run.rstrip("=").replace("-", "+").replace("_", "/")
            try:
                yield from _readable(base64.b64decode(data + "=" * (-len(data) % 4)))
            except (binascii.Error, ValueError):
                continue
    for match in _HEX.finditer(text):
        yield from _readable(bytes.fromhex(re.sub(r"[^0-9a-fA-F]", "", match[0])))


def _readable(data: bytes) -> Iterator[str]:
    """The bytes as a text, if they are one."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    plain = sum(c.isalpha() or c in " \n.,!?'" for c in text)
    if len(text) >= 6 and plain >= 0.8 * len(text):
        yield text


def spans(text: str, size: int = SPAN, overlap: int = OVERLAP) -> Iterator[str]:
    """Pieces of at most `size` characters, each beginning `overlap` before the last one's end."""
    start = 0
    while True:
        yield text[start : start + size]
        if start + size >= len(text):
            return
        start += size - overlap


def views(text: str) -> list[str]:
    """All that is judged of a text: its spans and those of what is hidden in it, normalised."""
    return [span for each in (text, *hidden(text)) for span in spans(normalised(each)) if span]
