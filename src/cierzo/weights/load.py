"""A checkpoint into a `Transformer`, one tensor at a time."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cierzo.errors import WeightsError
from cierzo.model import ModelConfig, Transformer
from cierzo.ops import PackedMatrix, huge_pages
from cierzo.weights.source import PARAMETER, WeightSource, open_source

_ROUTER = "feed_forward.gate.weight"  # of a mixture of experts: small, and rounding it sends tokens elsewhere

_INTEGERS = {
    torch.float32: (torch.int32, 0x7F80_0000),
    torch.float16: (torch.int16, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7F80),
}
"""The integers of each type's width, and positive infinity among them."""
_PIECE = 2**19


def load_model(
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    packed: bool = False,
    mapped: bool = True,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Transformer:
    """The model at `path` (see `open_source`), ready to run and without gradients.

    With `dtype` None, `computing_dtype` chooses. With `packed`, the matrices of a quantised checkpoint stay in few bits
    on the CPU, which needs the native kernels, and everything else becomes float32. Weights that need no conversion
    stay mapped files, which the operating system reads when they are first used; where `mapped` is false, a packed
    folder's matrices are copied into huge pages instead. Beyond the model itself, loading takes the memory of one
    tensor. `progress` hears (parameters done, parameters in all). Raises `WeightsError`, also for numbers that are NaN
    or infinite (a packed folder's were looked at when it was written) and where a GPU's memory is too small.
    """
    source = open_source(path, mapped=mapped)
    on_cpu = torch.device(device).type == "cpu"
    packed = packed and source.quantized and on_cpu
    if packed:
        dtype = torch.float32
    elif dtype is None:
        dtype = computing_dtype(source, on_cpu=on_cpu)
    check_counts(source)
    model = Transformer.without_weights(source.config)
    shapes = model_shapes(source.config, model)
    check_shapes(source, shapes)
    done, total = 0, source.config.n_params
    with huge_pages():
        for name, shape in shapes.items():
            weight: nn.Parameter | PackedMatrix
            if packed and is_matrix(name, shape):
                weight = source.packed(name)
            else:
                tensor = checked_finite(source, name)
                weight = nn.Parameter(_moved(tensor, device, dtype, shapes), requires_grad=False)
            module, _, attribute = name.rpartition(".")
            owner = model.get_submodule(module)
            delattr(owner, attribute)  # a packed matrix is no parameter: PyTorch would refuse it in one's place
            setattr(owner, attribute, weight)
            done += weight.numel()
            if progress:
                progress(done, total)
    return model.eval()


def computing_dtype(source: WeightSource, *, on_cpu: bool = True) -> torch.dtype:
    """The type that a checkpoint's matrices are computed in when nobody asks for another.

    float32 and bfloat16 stay. float16 does not: activations of models that were trained in bfloat16 pass its largest
    number, 65,504, and no CPU computes fast in it. On the CPU it becomes float32, which holds the weights exactly
    (bfloat16 has three bits less of mantissa). On a GPU, where float32 would often not fit, it becomes bfloat16, as
    quantised matrices do, for which this rounding is small beside their own.
    """
    if source.dtype != torch.float16 and (on_cpu or not source.quantized):
        return source.dtype
    return torch.float32 if on_cpu else torch.bfloat16


def _moved(
    tensor: Tensor, device: torch.device | str, dtype: torch.dtype, shapes: Mapping[str, tuple[int, ...]]
) -> Tensor:
    """The tensor there, in that type; one of those in `shapes`."""
    try:
        return tensor.to(device=device, dtype=dtype)
    except torch.OutOfMemoryError:
        needed = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
        raise WeightsError(
            f"the weights take {needed / 1e9:.1f} GB as {str(dtype).removeprefix('torch.')}, which the memory of the "
            "GPU has no room for: take a smaller model, or compute on the CPU (device cpu)"
        ) from None


def model_shapes(config: ModelConfig, model: Transformer | None = None) -> dict[str, tuple[int, ...]]:
    """Every parameter of a configuration's model, by name."""
    model = model or Transformer.without_weights(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the parameter may be in few bits."""
    return len(shape) == 2 and not name.endswith(_ROUTER)


def checked_finite(source: WeightSource, name: str) -> Tensor:
    """One tensor of the source. Raises `WeightsError` when it holds NaN or infinite numbers."""
    tensor = source.tensor(name)
    if not all_finite(tensor):
        raise WeightsError(
            f"{source.file(name)}: tensor {name!r} holds NaN or infinite numbers: fetch the file again, or take "
            "another conversion of the model"
        )
    return tensor


def all_finite(tensor: Tensor) -> bool:
    """Whether no number of a float32, float16 or bfloat16 tensor is NaN or infinite.

    Read as integers, such numbers are the largest of their sign: above every finite one as signed integers when they
    are positive, as unsigned ones when they are negative. So two maxima answer, at the memory's speed and without
    another tensor (`isfinite().all()` is 30 times slower); in pieces, for the second to find its numbers in the cache.
    """
    signed, infinity = _INTEGERS[tensor.dtype]
    numbers = tensor.view(signed).numpy().reshape(-1)
    negative = infinity + (1 << (8 * numbers.itemsize - 1))
    unsigned = np.dtype(f"u{numbers.itemsize}")
    pieces = (numbers[at : at + _PIECE] for at in range(0, len(numbers), _PIECE))
    return all(piece.max() < infinity and piece.view(unsigned).max() < negative for piece in pieces)


def check_counts(source: WeightSource) -> None:
    """The files hold as many layers and experts as the configuration declares; before as many are built."""
    layers, experts = set[str](), set[str]()
    for name in filter(PARAMETER.fullmatch, source.shapes):
        parts = name.split(".")
        if parts[0] == "layers":
            layers.add(parts[1])
            if parts[3] == "experts":
                experts.add(f"{parts[1]}.{parts[4]}")
    config = source.config
    declared = {"layers": ("num_hidden_layers, n_layers or block_count", config.n_layers, len(layers))}
    if config.moe:
        declared["experts"] = (
            "num_local_experts, num_experts or expert_count", config.n_layers * config.moe.num_experts, len(experts),
        )  # fmt: skip
    for what, (keys, said, found) in declared.items():
        if said != found:
            raise WeightsError(
                f"{source.path}: tensors of {found} {what}, and the configuration says {said} ({keys}): "
                "fetch the model again, or check its configuration"
            )


def check_shapes(source: WeightSource, expected: Mapping[str, tuple[int, ...]]) -> None:
    """The checkpoint holds the model's tensors, all of them and nothing else."""
    missing = [name for name in expected if name not in source.shapes]
    if missing:
        raise WeightsError(
            f"{source.path}: {len(missing)} of {len(expected)} tensors are missing, {missing[0]!r} first: "
            "fetch the model again, or check its configuration"
        )
    for name, shape in source.shapes.items():
        if name not in expected:
            raise WeightsError(
                f"{source.path}: tensor {name!r} has no place in this model: biases, adapters and other architectures "
                "are not supported"
            )
        if shape != expected[name]:
            raise WeightsError(
                f"{source.path}: tensor {name!r} is {list(shape)} but the configuration says {list(expected[name])}: "
                "the configuration and the weights are of different models"
            )
