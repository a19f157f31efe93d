"""A checkpoint into a `Transformer`, one tensor at a time."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from cierzo.errors import WeightsError
from cierzo.model import Transformer
from cierzo.weights.source import WeightSource, open_source


def load_model(
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Transformer:
    """The model at `path` (see `open_source`), ready to run and without gradients.

    `dtype` None keeps what the matrices are stored in (float32 when quantised). Weights that need no conversion stay
    mapped files, which the operating system reads when they are first used; beyond the model itself, loading takes the
    memory of one tensor. `progress` hears (parameters done, parameters in all). Raises `WeightsError`.
    """
    source = open_source(path)
    dtype = dtype or source.dtype
    model = Transformer.without_weights(source.config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _check(source, shapes)
    done, total = 0, source.config.n_params
    for name in shapes:
        parameter = nn.Parameter(source.tensor(name).to(device=device, dtype=dtype), requires_grad=False)
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, parameter)
        done += parameter.numel()
        if progress:
            progress(done, total)
    return model.eval()


def _check(source: WeightSource, expected: Mapping[str, tuple[int, ...]]) -> None:
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
