"""What a model's files are, and what is wrong with them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from cierzo.model import ModelConfig
from cierzo.weights.gguf import GgufFile
from cierzo.weights.load import check_counts, check_shapes, checked_finite, model_shapes
from cierzo.weights.packed import PackedFolder
from cierzo.weights.source import WeightSource, open_source


def inspect_model(
    path: Path, *, full: bool = False, report: Callable[[int, int], None] | None = None
) -> dict[str, str]:
    """What the weights at `path` are, as names and texts to show.

    Header, names and shapes are checked; with `full` every weight is read, and must be a finite number. Raises
    `WeightsError` for what is wrong.
    """
    source = open_source(path)
    check_counts(source)
    shapes = model_shapes(source.config)
    check_shapes(source, shapes)
    if full:
        done, total = 0, source.config.n_params
        for name in shapes:
            done += checked_finite(source, name).numel()
            if report:
                report(done, total)
    files = sorted({source.file(name) for name in shapes})
    size = sum(file.stat().st_size for file in files)
    n_params = source.config.n_params
    return {
        "format": _format(source),
        "files": ", ".join(file.name for file in files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else ""),
        "size": f"{size / 1e9:.3f} GB, {8 * size / n_params:.2f} bits a weight",
        "parameters": f"{n_params / 1e9:.3f} billion",
        "matrices": _matrices(source, shapes),
        "shape": shape_text(source.config),
        "attention": attention_text(source.config),
        "weights": "all numbers are finite" if full else "names and shapes fit (--full reads every number)",
    }


def shape_text(config: ModelConfig) -> str:
    experts = f", {config.moe.num_experts} experts of which {config.moe.num_experts_per_tok} work" if config.moe else ""
    tied = ", embeddings tied" if config.tied_embeddings else ""
    return (
        f"{config.n_layers} layers of {config.dim}, {config.n_heads} heads and {config.n_kv_heads} for keys of "
        f"{config.head_dim}, feed-forward {config.hidden_dim}{experts}, {config.vocab_size} tokens{tied}"
    )


def attention_text(config: ModelConfig) -> str:
    windows = [
        f"{len(layers)} layers see {'everything' if window is None else f'{window.size} positions'}"
        for window, layers in config.window_groups
    ]
    return f"{', '.join(windows)}; made for {config.max_seq_len} tokens; RoPE base {config.rope_theta:g}"


def _format(source: WeightSource) -> str:
    if isinstance(source, GgufFile):
        return "GGUF"
    if isinstance(source, PackedFolder):
        return "packed by Cierzo"
    return "consolidated" if any(source.path.glob("consolidated*")) else "Hugging Face"


def _matrices(source: WeightSource, shapes: dict[str, tuple[int, ...]]) -> str:
    kinds = Counter(source.kind(name) for name, shape in shapes.items() if len(shape) == 2)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
