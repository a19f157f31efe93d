"""What one attention layer can see."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A query at position i attends `size` keys at i, i - dilation, i - 2 dilation, ..., itself included.

    Sliding windows: Mistral 7B (arXiv:2310.06825, section 2). Dilation: Longformer (arXiv:2004.05150, section 3.1).
    `size` is the published W, so flash-attention's `window_size_left` would be W - 1.
    """

    size: int
    dilation: int = 1

    def __post_init__(self) -> None:
        if self.size < 1 or self.dilation < 1:
            raise ValueError(f"a window needs size >= 1 and dilation >= 1, not {self.size} and {self.dilation}")

    @property
    def reach(self) -> int:
        """Positions from the oldest key that a query sees to the query, both included: (W - 1) d + 1."""
        return (self.size - 1) * self.dilation + 1


def first_visible(window: Window | None, position: int) -> int:
    """The oldest position that a query at `position` can see."""
    return 0 if window is None else max(0, position - window.reach + 1)
