"""A checkpoint into a `Transformer`, one tensor at a time."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from cierzo.errors import WeightsError
from cierzo.model import ModelConfig, Transformer
from cierzo.ops import PackedMatrix
from cierzo.weights.source import WeightSource, open_source

_ROUTER = "feed_forward.gate.weight"  # of a mixture of experts: small, and rounding it sends tokens elsewhere


def load_model(
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    packed: bool = False,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Transformer:
    """The model at `path` (see `open_source`), ready to run and without gradients.

    `dtype` None keeps what the matrices are stored in (float32 when quantised). With `packed`, the matrices of a
    quantised checkpoint stay in few bits and everything else becomes float32. Weights that need no conversion stay
    mapped files, which the operating system reads when they are first used; beyond the model itself, loading takes the
    memory of one tensor. `progress` hears (parameters done, parameters in all). Raises `WeightsError`.
    """
    source = open_source(path)
    packed = packed and source.quantized
    dtype = torch.float32 if packed else dtype or source.dtype
    model = Transformer.without_weights(source.config)
    shapes = model_shapes(source.config, model)
    check_shapes(source, shapes)
    done, total = 0, source.config.n_params
    for name, shape in shapes.items():
        weight: nn.Parameter | PackedMatrix
        if packed and is_matrix(name, shape):
            weight = source.packed(name)
        else:
            weight = nn.Parameter(source.tensor(name).to(device=device, dtype=dtype), requires_grad=False)
        module, _, attribute = name.rpartition(".")
        owner = model.get_submodule(module)
        delattr(owner, attribute)  # a packed matrix is no parameter: PyTorch would refuse it in one's place
        setattr(owner, attribute, weight)
        done += weight.numel()
        if progress:
            progress(done, total)
    return model.eval()


def model_shapes(config: ModelConfig, model: Transformer | None = None) -> dict[str, tuple[int, ...]]:
    """Every parameter of a configuration's model, by name."""
    model = model or Transformer.without_weights(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the parameter may be in few bits."""
    return len(shape) == 2 and not name.endswith(_ROUTER)


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
