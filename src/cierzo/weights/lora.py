"""LoRA adapters in PEFT's folder format, merged into the weights as they are read (arXiv:2106.09685, section 4.1)."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cierzo.errors import WeightsError
from cierzo.model import ModelConfig
from cierzo.ops import Format, PackedMatrix, quantize
from cierzo.weights.huggingface import LAYER, MODEL, interleave
from cierzo.weights.source import WeightSource, read_json, read_safetensors, shown

_KEY = re.compile(r"base_model\.model\.(?P<stored>.+)\.lora_(?P<side>[AB])\.weight")
_BASE = re.compile(r"base_model\.model\.(?P<stored>.+)\.base_layer\.weight")
_IN_LAYER = re.compile(r"model\.(layers\.\d+)\.(.+)")
_UNSUPPORTED = ("use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication",
                "trainable_token_indices", "use_qalora", "alora_invocation_tokens", "target_parameters")  # fmt: skip


class Merged:
    """A `WeightSource` whose matrices are W + scale x B A, computed in float32; all else is the base's."""

    quantized = False

    def __init__(self, base: WeightSource, adapter: Path) -> None:
        self._base, self.path, self.config, self.shapes = base, base.path, base.config, base.shapes
        self.file, self.kind = base.file, base.kind
        self.dtype = base.dtype
        self._scale, self._pairs = _read(adapter, base)

    def packed(self, name: str) -> PackedMatrix:
        return quantize(self.tensor(name), Format.Q8)

    def tensor(self, name: str) -> Tensor:
        tensor = self._base.tensor(name)
        if name not in self._pairs:
            return tensor
        down, up = (side.float() for side in self._pairs[name])
        return torch.addmm(tensor.float(), up, down, alpha=self._scale)


def _read(folder: Path, base: WeightSource) -> tuple[float, dict[str, tuple[Tensor, Tensor]]]:
    """The factor, and (A [rank, inputs], B [outputs, rank]) of each matrix."""
    path = folder / "adapter_config.json"
    settings = read_json(path)
    if settings.get("peft_type", "LORA") != "LORA":
        raise WeightsError(f"{path}: {shown(settings['peft_type'])} adapters cannot be merged: only LORA can")
    for key in _UNSUPPORTED:
        if settings.get(key):
            raise WeightsError(f"{path}: {key!r} is not supported: merge it with PEFT, and export the result")
    if settings.get("bias", "none") != "none":
        raise WeightsError(f"{path}: biases are not supported: this model has none")
    rank, alpha = (_number(path, settings, key) for key in ("r", "lora_alpha"))
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    file = folder / "adapter_model.safetensors"
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_safetensors(file).items():
        base_layer = _BASE.fullmatch(key)
        if base_layer and tuple(tensor.shape) == base.shapes.get(_ours(base_layer["stored"])):
            continue  # PEFT adds the embedding or output that it adapted, as it was
        found = _KEY.fullmatch(key)
        name = _ours(found["stored"]) if found else key
        if found is None or name not in base.shapes or len(base.shapes[name]) != 2:
            raise WeightsError(f"{file}: tensor {key!r} belongs to no matrix of this model: it is not its adapter")
        sides.setdefault(name, {})[found["side"]] = tensor
    pairs = {}
    for name, pair in sides.items():
        outputs, inputs = base.shapes[name]
        shapes = {side: tuple(tensor.shape) for side, tensor in pair.items()}
        if shapes != {"A": (int(rank), inputs), "B": (outputs, int(rank))}:
            raise WeightsError(
                f"{file}: {name} of {outputs} x {inputs} takes A and B of rank {int(rank)}, and has {shown(shapes)}: "
                "the adapter is of another model"
            )
        pairs[name] = (pair["A"], _rows(base.config, name, pair["B"]))
    if not pairs:
        raise WeightsError(f"{file}: no LoRA matrices in it: nothing to merge")
    return scale, pairs


def _rows(config: ModelConfig, name: str, up: Tensor) -> Tensor:
    """q and k have their rows in Hugging Face's rotary order, so has the adapter."""
    return interleave(config.head_dim, name, up)


def _ours(stored: str) -> str:
    """Mistral's name of a module; experts and routers are no Linear layers that PEFT would adapt."""
    if f"{stored}.weight" in MODEL:
        return MODEL[f"{stored}.weight"]
    found = _IN_LAYER.fullmatch(stored)
    return f"{found[1]}.{LAYER[found[2]]}.weight" if found and found[2] in LAYER else stored


def _number(path: Path, settings: dict[str, Any], key: str) -> float:
    value = settings.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e6:
        raise WeightsError(f"{path}: {key!r} must be a positive number, not {shown(value)}")
    return float(value)
