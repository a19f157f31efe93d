"""Models into the formats that others read: Hugging Face, consolidated and GGUF, tensor by tensor.

Nothing that is written has its name before it is whole. From 16-bit weights to bfloat16, and from packed weights to the
GGUF types of the same grid, nothing is lost; everything else is rounded once, to nearest.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cierzo.errors import CierzoError
from cierzo.model import ModelConfig
from cierzo.weights.huggingface import halves, stored_name
from cierzo.weights.load import all_finite, check_counts, check_shapes, checked_finite, model_shapes
from cierzo.weights.lora import Merged
from cierzo.weights.packed import partial_model
from cierzo.weights.source import WeightSource, open_source, read_json
from cierzo.weights.store import check_space

Progress = Callable[[int, int], None]

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
_SHARD = 5_000_000_000  # bytes of a file, as other tools cut them


def open_complete(model: Path, lora: Path | None = None) -> tuple[WeightSource, dict[str, tuple[int, ...]]]:
    """A checkpoint of any format, an adapter merged in, with the shapes of its parameters."""
    source = open_source(model)
    check_counts(source)
    shapes = model_shapes(source.config)
    check_shapes(source, shapes)
    return (Merged(source, lora) if lora else source), shapes


def export_huggingface(
    model: Path, out: Path, *, dtype: torch.dtype = torch.bfloat16, lora: Path | None = None,
    tokenizer: Callable[[Path], None] = lambda folder: None, progress: Progress | None = None,
) -> None:  # fmt: skip
    """Write a folder that `transformers` loads; `tokenizer` may add files to it.

    Raises:
        CierzoError: `out` exists, cannot be written, or the model has no form there.
        WeightsError: as `open_source` does.
    """
    source, shapes = open_complete(model, lora)
    config = _huggingface_config(source, dtype)
    with partial_model(model, out) as folder:
        check_space(folder, dtype.itemsize * source.config.n_params, f"this form of {model.name}")
        tokenizer(folder)
        (folder / "params.json").unlink(missing_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        shards = list(_shards(shapes, dtype))
        report = _counted(source.config, progress)
        placed: dict[str, str] = {}
        for number, names in enumerate(shards, 1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            stored = [(stored_name(name), name) for name in names]
            _write_safetensors(
                folder / file, [(theirs, shapes[ours]) for theirs, ours in stored], dtype,
                (halves(source.config.head_dim, ours, report(checked_finite(source, ours))) for _, ours in stored),
            )  # fmt: skip
            placed |= dict.fromkeys([theirs for theirs, _ in stored], file)
        if len(shards) > 1:
            size = dtype.itemsize * source.config.n_params
            index = {"metadata": {"total_size": size}, "weight_map": placed}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def export_consolidated(
    model: Path, out: Path, *, dtype: torch.dtype = torch.bfloat16, lora: Path | None = None,
    tokenizer: Callable[[Path], None] = lambda folder: None, progress: Progress | None = None,
) -> None:  # fmt: skip
    """Write a folder in Mistral's own format; see `export_huggingface`."""
    source, shapes = open_complete(model, lora)
    _check_dilation(source, "consolidated")
    with partial_model(model, out) as folder:
        check_space(folder, dtype.itemsize * source.config.n_params, f"this form of {model.name}")
        tokenizer(folder)
        (folder / "config.json").unlink(missing_ok=True)
        values = {
            key: value
            for key, value in asdict(source.config).items()
            if key != "window_dilation" and value not in (None, False)
        }
        (folder / "params.json").write_text(json.dumps(values, indent=2) + "\n")
        report = _counted(source.config, progress)
        _write_safetensors(
            folder / "consolidated.safetensors", list(shapes.items()), dtype,
            (report(checked_finite(source, name)) for name in shapes),
        )  # fmt: skip


def _counted(config: ModelConfig, progress: Progress | None) -> Callable[[Tensor], Tensor]:
    """Hands tensors on, and tells how many weights that makes."""
    done = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal done
        done += tensor.numel()
        if progress:
            progress(done, config.n_params)
        return tensor

    return count


def _shards(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> Iterator[list[str]]:
    """The parameters of each file."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        n_bytes = dtype.itemsize * math.prod(shape)
        if names and size + n_bytes > _SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += n_bytes
    yield names


def _huggingface_config(source: WeightSource, dtype: torch.dtype) -> dict[str, Any]:
    """The `config.json`: every key is written, as those that are missing mean other things for other kinds."""
    config, windows = source.config, source.config.windows
    _check_dilation(source, "Hugging Face")
    sizes = {window.size for window in windows if window is not None}
    mixed = bool(sizes) and None in windows
    if len(sizes) > 1 or (mixed and config.moe):
        raise CierzoError(
            f"{source.path}: its layers have several windows, and transformers has one window size (with experts, the "
            "same window in every layer): this model has no Hugging Face form"
        )
    kind = "mixtral" if config.moe else "ministral" if mixed else "mistral" if sizes else _plain_kind(source)
    values: dict[str, Any] = {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": float(config.norm_eps),  # transformers refuses a whole number
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": False,
        "use_cache": True,
    }
    if kind != "llama":
        values["sliding_window"] = next(iter(sizes), None)
    if mixed:
        values["layer_types"] = ["sliding_attention" if window else "full_attention" for window in windows]
    if config.moe:
        values |= {"num_local_experts": config.moe.num_experts, "num_experts_per_tok": config.moe.num_experts_per_tok}
    given = source.path / "config.json"
    if given.is_file():  # what else tools look for
        old = read_json(given)
        values |= {key: old[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in old}
    return values


def _plain_kind(source: WeightSource) -> str:
    """The model type of a dense model without a window: llama, unless the model is Mistral's or llama cannot have it.

    In transformers, llama's width must be a multiple of its heads. Without any window, ministral cannot be run there,
    so such a model is a mistral.
    """
    given = source.path / "config.json"
    theirs = read_json(given).get("model_type") if given.is_file() else None
    mistral = (source.path / "params.json").is_file() or theirs in ("mistral", "ministral")
    return "mistral" if mistral or source.config.dim % source.config.n_heads else "llama"


def _check_dilation(source: WeightSource, form: str) -> None:
    if any(window.dilation != 1 for window in source.config.windows if window is not None):
        raise CierzoError(f"{source.path}: its windows are dilated, and there is no {form} form of such a model")


def _write_safetensors(
    path: Path, shapes: list[tuple[str, tuple[int, ...]]], dtype: torch.dtype, tensors: Iterable[Tensor]
) -> None:
    """Tensors, in this order, one at a time. The format: https://github.com/huggingface/safetensors#format."""
    entries, end = {}, 0
    for name, shape in shapes:
        start, end = end, end + dtype.itemsize * math.prod(shape)
        entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, _), tensor in zip(shapes, tensors, strict=True):
            file.write(finite(name, tensor.to(dtype)).contiguous().view(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def finite(name: str, tensor: Tensor) -> Tensor:
    """Refuse what was finite, and is no longer in fewer bits."""
    if not all_finite(tensor):
        raise CierzoError(f"tensor {name!r} holds numbers beyond {tensor.dtype}: export it to bfloat16 or float32")
    return tensor
