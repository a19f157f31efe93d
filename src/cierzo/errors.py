"""The mistakes that a user can make or meet."""

_LONGEST = 1000


class CierzoError(Exception):
    """A clear one-line reason with what to do about it. The CLI prints it without a traceback.

    Messages quote files, which may hold anything: what does not print becomes a space, runs of spaces one, and what is
    too long loses its middle.
    """

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"
        super().__init__(" ".join("".join(c if c.isprintable() else " " for c in message).split()))


class WeightsError(CierzoError):
    """A model file that is missing, broken or not supported; names the file and the tensor or key."""


class EngineError(CierzoError):
    """A request that failed while it was computed, or an engine that cannot go on."""


NOT_FINITE = "the model's scores are no numbers (NaN or infinite): its weights or the prompt drive it out of range"
"""The reason that a request failed with when what the model computed for it is not finite. The engine goes on."""


class QueueFullError(CierzoError):
    """Too many requests at once; the same request may be taken later."""
