"""How many prompt tokens a step may take beside the sequences that are decoding.

A step answers nobody before its end, so a long prompt computed in large chunks would make every other conversation
stutter. The engine measures what steps cost on this machine and keeps those with a prompt near `STALL` times as long as
one without (Sarathi-Serve calls this stall-free batching, arXiv:2403.02310).
"""

STALL = 2.0
"""How long a step with a prompt may take, in steps of the same sequences without one."""
LONGEST = 2.0
"""Seconds for a step when nobody is decoding: newcomers and cancels wait for it."""
FEWEST = 4
"""Prompt tokens of a step at least; fewer cost nearly as much."""
_TOGETHER = (8, 4)
"""Rows that kernels compute together. A few more cost nearly as much as so many, so steps are whole multiples."""
_FIRST_CHUNK = 64
_MIXED = 32
"""Steps with prompts in a row, after which one goes without, so that decoding is measured and not guessed."""
_WEIGHT = 0.2  # of the newest measurement in the running means


class StepBudget:
    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self._token: float | None = None  # seconds of one prompt token
        self._mixed = 0
        self._decode: dict[int, float] = {}  # seconds of a step without prompts, by the number of sequences
        self._guessed: set[int] = set()  # of them, those that no step without prompts has shown

    def prompt_tokens(self, decoding: int) -> int:
        """The most prompt tokens for a step in which `decoding` sequences get a token each."""
        if self._token is None:
            return min(_FIRST_CHUNK, self.chunk_size)
        if decoding and self._mixed >= _MIXED:
            self._mixed = 0
            return 0
        seconds = (STALL - 1) * self._decode_seconds(decoding) if decoding else LONGEST
        tokens = max(1, min(self.chunk_size, max(FEWEST, int(seconds / self._token))))
        whole = ((decoding + tokens) // rows * rows - decoding for rows in _TOGETHER)
        return next((fewer for fewer in whole if 2 * fewer >= tokens), tokens)

    def observe(self, decoding: int, prompt_tokens: int, seconds: float) -> None:
        """Learn from a step."""
        self._mixed = self._mixed + 1 if decoding and prompt_tokens else 0
        if not prompt_tokens:
            guessed = decoding in self._guessed
            self._guessed.discard(decoding)
            self._decode[decoding] = _mean(None if guessed else self._decode.get(decoding), seconds)
        elif not decoding:
            self._token = _mean(self._token, self._plausible(seconds / prompt_tokens))
        elif decoding not in self._decode and self._token is not None:
            # Under load it takes a while until a step has no prompt.
            self._guessed.add(decoding)
            self._decode[decoding] = max(seconds - prompt_tokens * self._token, decoding * self._token)
        else:
            each = (seconds - self._decode_seconds(decoding)) / prompt_tokens
            self._token = _mean(self._token, self._plausible(each))

    def _plausible(self, each: float) -> float:
        """A step that something else disturbed must not decide alone."""
        return max(each, 1e-9) if self._token is None else min(max(each, self._token / 4), self._token * 4)

    def _decode_seconds(self, decoding: int) -> float:
        """As measured, or at least what as many prompt tokens take and what fewer sequences took."""
        fewer = max((n for n in self._decode if n <= decoding), default=0)
        known = self._decode.get(fewer, 0.0)
        return known if fewer == decoding else max(known, decoding * (self._token or 0.0))


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
