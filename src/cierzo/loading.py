"""From a model's name to an engine that runs it, and the card that says what was chosen."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from cierzo.engine import Engine
from cierzo.engine.blocks import blocks_bound
from cierzo.errors import CierzoError
from cierzo.model import ModelConfig, Transformer
from cierzo.ops import CACHE_TYPES, PackedMatrix, free_memory, head_width, machine
from cierzo.progress import progress_bar
from cierzo.tokens import Tokenizer, load_tokenizer
from cierzo.weights import load_model, open_source
from cierzo.weights.load import computing_dtype
from cierzo.weights.pull import resolve_model

_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
_SEQUENCES = 16
"""Whole sequences that a cache of unstated size holds at most, where half of the free memory is enough for them."""


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model and how much it may use.

    Attributes:
        dtype: "float32", "bfloat16", or "auto" for that of the file. On the CPU, "auto" keeps a quantised file in few
            bits, which native kernels compute with (without them it becomes float32), and widens float16 to float32,
            since activations may pass float16's range. On a GPU, "auto" makes bfloat16 of both.
        device: as PyTorch names them, or "auto": CUDA where there is one.
        chat_template: see `cierzo.tokens.load_tokenizer`.
        max_seq_len: prompt and answer together, in tokens; the model's own limit when None.
        allow_beyond_limit: let a model whose every layer has a window go on past its limit, for ever; what it says
            there is the user's to judge.
        block_size: tokens in a block of the cache.
        chunk_size: prompt tokens computed in one step at most.
        cache_dtype: "float32", "bfloat16", "int8" (half the memory of bfloat16; where two tokens are
            about as likely, the other one may come), or "auto" for that of the weights, bfloat16 for those in few bits.
        cache_tokens: tokens that the cache holds; when None, sixteen sequences of `max_seq_len`, or what half of the
            free memory holds if that is less.
        max_running: sequences computed together at most; more wait.
        sliding_window: another window than the model's own, in tokens, for all layers; 0 for none.
        mmap: leave the weights of a packed folder in their file, which processes share, and which takes no time; else
            they are copied into huge pages, which decodes faster where memory is fast (docs/benchmarks.md).
    """

    dtype: str = "auto"
    device: str = "auto"
    chat_template: str | None = None
    max_seq_len: int | None = None
    allow_beyond_limit: bool = False
    block_size: int = 16
    chunk_size: int = 512
    cache_dtype: str = "auto"
    cache_tokens: int | None = None
    max_running: int = 64
    sliding_window: int | None = None
    mmap: bool = True

    def __post_init__(self) -> None:
        if self.sliding_window is not None and self.sliding_window < 0:
            raise CierzoError(f"sliding_window must be at least 0, not {self.sliding_window}")
        for name in ("max_seq_len", "block_size", "chunk_size", "cache_tokens", "max_running"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CierzoError(f"{name} must be at least 1, not {value}")
        if self.dtype not in _DTYPES:
            raise CierzoError(f"dtype {self.dtype!r} is not supported: use one of {', '.join(_DTYPES)}")
        if self.cache_dtype not in ("auto", *CACHE_TYPES):
            raise CierzoError(
                f"cache_dtype {self.cache_dtype!r} is not supported: use one of auto, {', '.join(CACHE_TYPES)}"
            )


@dataclass(frozen=True)
class Card:
    """What was chosen for a model: sizes in bytes, lengths in tokens."""

    name: str
    parameters: int
    format: str
    weights: int
    cache: int
    cache_dtype: str
    cache_tokens: int
    max_seq_len: int | None
    window: str
    isa: str
    threads: int

    def __str__(self) -> str:
        limit = "no limit" if self.max_seq_len is None else f"{self.max_seq_len:,} tokens"
        return (
            f"{self.name}: {self.parameters / 1e6:,.0f} M parameters in {self.format}, {_mib(self.weights)}; "
            f"cache for {self.cache_tokens:,} tokens in {self.cache_dtype}, {_mib(self.cache)} at most; "
            f"context {limit}, {self.window}; {self.isa}, {self.threads} threads"
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, under a short name."""

    name: str
    path: Path
    engine: Engine

    @property
    def card(self) -> Card:
        model, cache, config = self.engine.model, self.engine.cache, self.engine.model.config
        matrices = {id(w): w for module in model.modules() for w in (getattr(module, "weight", None),) if w is not None}
        kinds: Counter[str] = Counter()
        for weight in matrices.values():
            packed = isinstance(weight, PackedMatrix)
            kinds[weight.format.name if packed else str(weight.dtype).removeprefix("torch.")] += weight.numel()
        windows = sorted({str(w.size) for w in config.windows if w is not None}, key=int)
        return Card(
            name=self.name,
            parameters=sum(kinds.values()),
            format=kinds.most_common(1)[0][0],
            weights=sum(w.data.numel() * w.data.element_size() for w in matrices.values()),
            cache=sum(side.numel() * side.element_size() for kv in cache.layers.values() for side in kv),
            cache_dtype=str(cache.dtype).removeprefix("torch."),
            cache_tokens=min(cache.block_counts) * cache.block_size,
            max_seq_len=self.engine.max_seq_len,
            window=f"window {', '.join(windows)}" if windows else "no window",
            isa=machine().isa,
            threads=machine().threads,
        )


def load(
    model: str | Path | None = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    chat_template: str | None = None,
    progress: bool = False,
) -> tuple[Transformer, Tokenizer]:
    """A model's weights and its tokenizer.

    Args:
        model: a folder (consolidated or Hugging Face), a GGUF file, or a name; None is the default model.
        dtype, device, chat_template: see `LoadOptions`.
        progress: show on a terminal how far fetching and loading are.

    Raises:
        CierzoError: no such model, or files that are broken or not supported.
    """
    options = LoadOptions(dtype=dtype, device=device, chat_template=chat_template)
    return _load(resolve_model(model, progress=progress), options, progress)


def _load(path: Path, options: LoadOptions, progress: bool) -> tuple[Transformer, Tokenizer]:
    tokenizer = load_tokenizer(path, options.chat_template)
    with progress_bar(f"loading {path.name}", wanted=progress) as report:
        device = resolve_device(options.device)
        transformer = load_model(
            path, dtype=_DTYPES[options.dtype], packed=_packed(options, device), mapped=options.mmap, device=device,
            progress=report,
        )  # fmt: skip
    if tokenizer.vocab_size > transformer.config.vocab_size:
        raise CierzoError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens and the weights {transformer.config.vocab_size}: "
            "they are not of one model"
        )
    return transformer, tokenizer


def _packed(options: LoadOptions, device: torch.device) -> bool:
    """Whether matrices in few bits stay so."""
    return options.dtype == "auto" and device.type == "cpu" and machine().kernels is not None


def weights_size(path: Path, options: LoadOptions) -> int:
    """Bytes that a model's weights will take: those of its files if they stay in few bits, or of its numbers' type."""
    source, device = open_source(path), resolve_device(options.device)
    if source.quantized and _packed(options, device):
        return sum(file.stat().st_size for file in {source.file(name) for name in source.shapes})
    dtype = _DTYPES[options.dtype] or computing_dtype(source, on_cpu=device.type == "cpu")
    return source.config.n_params * dtype.itemsize


def load_engine(model: str | Path | None, options: LoadOptions, *, promised: int = 0, progress: bool = False) -> Loaded:
    """A model ready to run. `promised` bytes of the free memory belong to other models' caches.

    Raises:
        CierzoError: no such model, broken files, options that it cannot have, or no memory.
    """
    path = resolve_model(model, progress=progress)
    transformer, tokenizer = _load(path, options, progress)
    if options.sliding_window is not None:
        transformer.look_back(options.sliding_window or None)
    config = transformer.config
    longest = options.max_seq_len or config.max_seq_len
    if options.allow_beyond_limit and not config.windowed:
        raise CierzoError("allow_beyond_limit needs a window in every layer, and this model has layers without one")
    if longest > config.max_seq_len and not options.allow_beyond_limit:
        raise CierzoError(
            f"max_seq_len {longest} is more than the {config.max_seq_len} tokens that this model was made for"
        )
    cache_dtype = CACHE_TYPES.get(options.cache_dtype, transformer.cache_dtype)
    cache_tokens = options.cache_tokens or _affordable_tokens(transformer, longest, options, cache_dtype, promised)
    try:
        engine = Engine(
            transformer,
            tokenizer,
            max_seq_len=None if options.allow_beyond_limit else longest,
            cache_tokens=cache_tokens,
            cache_dtype=cache_dtype,
            block_size=options.block_size,
            chunk_size=options.chunk_size,
            max_running=options.max_running,
        )
    except (RuntimeError, MemoryError):  # PyTorch says RuntimeError when memory is short
        raise CierzoError(
            f"no memory for a cache of {cache_tokens} tokens: lower cache_tokens or max_seq_len"
        ) from None
    return Loaded(path.stem if path.is_file() else path.resolve().name, path, engine)


def token_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of a token's keys and values in all layers."""
    return config.n_layers * 2 * config.n_kv_heads * head_width(config.head_dim, dtype) * dtype.itemsize


def _affordable_tokens(
    model: Transformer, longest: int, options: LoadOptions, dtype: torch.dtype, promised: int
) -> int:
    """The size of a cache that nobody stated."""
    size, config = options.block_size, model.config
    whole = max(blocks_bound(g.window, longest, options.chunk_size, size) for g in config.window_groups) * size
    free = free_memory(model.norm.weight.device) - promised
    half = free // 2 // token_bytes(config, dtype)
    return max(size, min(_SEQUENCES * whole, half))


def resolve_device(name: str) -> torch.device:
    """The device that a name means; "auto" is CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CierzoError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device
