"""The shape of a model, in Mistral's own names."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from cierzo.errors import CierzoError
from cierzo.ops import Window


class ConfigError(CierzoError, ValueError):
    """A model configuration that cannot be right; the message says which value and what to do."""


class WindowGroup(NamedTuple):
    """Layers that see the same window, and so can share one block table a sequence."""

    window: Window | None
    layers: tuple[int, ...]


@dataclass(frozen=True)
class MoeConfig:
    """A sparse mixture of experts in place of every feed-forward (Mixtral, arXiv:2401.04088)."""

    num_experts: int
    num_experts_per_tok: int

    def __post_init__(self) -> None:
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ConfigError(
                f"num_experts_per_tok {self.num_experts_per_tok} must be between 1 and num_experts {self.num_experts}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """A Mistral-family transformer. Widths are in elements, `max_seq_len` and `sliding_window` in tokens.

    `sliding_window` and `window_dilation` are one value for all layers or one a layer; None means that a layer sees
    everything before it. `max_seq_len` is the longest text that the model was made for.
    """

    dim: int
    n_layers: int
    head_dim: int
    hidden_dim: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    max_seq_len: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    sliding_window: int | tuple[int | None, ...] | None = None
    window_dilation: int | tuple[int, ...] = 1
    tied_embeddings: bool = False
    moe: MoeConfig | None = None

    def __post_init__(self) -> None:
        for name in (
            "dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len"
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, not {value!r}")
        for name in ("norm_eps", "rope_theta"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e38:
                raise ConfigError(f"{name} must be a positive number, not {value!r}")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads {self.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}: "
                "each key/value head serves the same number of query heads"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary embeddings, not {self.head_dim}")
        for name in ("sliding_window", "window_dilation"):
            value = getattr(self, name)
            entries = value if isinstance(value, tuple) else (value,)
            if isinstance(value, tuple) and len(value) != self.n_layers:
                raise ConfigError(
                    f"{name} has {len(value)} entries for {self.n_layers} layers: give one, or one a layer"
                )
            for entry in entries:
                if entry is not None and (not isinstance(entry, int) or isinstance(entry, bool)):
                    raise ConfigError(f"{name} must be a whole number of at least 1, not {entry!r}")
        try:
            _ = self.windows
        except ValueError as error:
            raise ConfigError(f"sliding_window {self.sliding_window!r}: {error}") from error

    @cached_property
    def windows(self) -> tuple[Window | None, ...]:
        """Each layer's window."""
        sizes = (
            self.sliding_window if isinstance(self.sliding_window, tuple) else (self.sliding_window,) * self.n_layers
        )
        steps = (
            self.window_dilation if isinstance(self.window_dilation, tuple) else (self.window_dilation,) * self.n_layers
        )
        return tuple(None if w is None else Window(w, d) for w, d in zip(sizes, steps, strict=True))

    @cached_property
    def window_groups(self) -> tuple[WindowGroup, ...]:
        """Layers by window, in order of first appearance."""
        return tuple(
            WindowGroup(window, tuple(i for i, w in enumerate(self.windows) if w == window))
            for window in dict.fromkeys(self.windows)
        )

    @property
    def windowed(self) -> bool:
        """Whether every layer forgets, so that memory is bounded however long the text."""
        return all(self.windows)

    @property
    def n_params(self) -> int:
        """Parameters, tied embeddings counted once."""
        attention = 2 * self.dim * self.head_dim * (self.n_heads + self.n_kv_heads)
        feed_forward = 3 * self.dim * self.hidden_dim
        if self.moe:
            feed_forward = self.moe.num_experts * (feed_forward + self.dim)
        embeddings = self.vocab_size * self.dim * (1 if self.tied_embeddings else 2)
        return self.n_layers * (attention + feed_forward + 2 * self.dim) + embeddings + self.dim
