"""One interface over the formats that weights come in, and how a format is recognised."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cierzo.errors import WeightsError
from cierzo.model import ConfigError, ModelConfig, MoeConfig
from cierzo.ops import Format, PackedMatrix, quantize

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class WeightSource(Protocol):
    """A checkpoint under Mistral's own names, those of `Transformer.state_dict()`, with interleaved RoPE.

    The files stay mapped while any of its tensors lives, and must not change in that time.
    """

    @property
    def path(self) -> Path: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def dtype(self) -> torch.dtype:
        """What the matrices are stored in, or float32 when that is quantised or mixed."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor that the checkpoint holds; one that has no place in the model keeps the name it is stored by."""
        ...

    @property
    def quantized(self) -> bool:
        """Whether some matrix is in few bits, so that all are best computed with as `packed` gives them."""
        ...

    def packed(self, name: str) -> PackedMatrix:
        """One matrix in few bits: in its own grid where that is one of the formats, else rounded to 8 bits."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One tensor: mapped memory when nothing had to be converted. Raises KeyError for a name not in `shapes`."""
        ...


class MappedTensors:
    """A `WeightSource` of mapped tensors; `convert` makes what is stored into what the model computes with."""

    quantized = False

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        tensors: dict[str, Tensor],
        convert: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
    ) -> None:
        if config.tied_embeddings and "output.weight" in tensors:
            output = tensors.pop("output.weight")
            if not torch.equal(output, tensors.get("tok_embeddings.weight", output)):
                raise WeightsError(
                    f"{path}: embeddings are declared tied, but 'output.weight' differs: declare them untied"
                )
        self.path, self.config, self._tensors, self._convert = path, config, tensors, convert
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.dtype = common_dtype(tensor.dtype for tensor in tensors.values() if tensor.ndim > 1)

    def tensor(self, name: str) -> Tensor:
        return self._convert(name, self._tensors[name])

    def packed(self, name: str) -> PackedMatrix:
        return quantize(self.tensor(name), Format.Q8)


def open_source(path: Path) -> WeightSource:
    """The checkpoint at `path`, a folder or a GGUF file. In a folder, packed goes first, then consolidated.

    Raises `WeightsError` when nothing is recognised, or when the files are broken or of a model that cannot be run.
    """
    # Here, not above: the formats build on this module.
    from cierzo.weights.consolidated import consolidated_files, open_consolidated
    from cierzo.weights.gguf import GgufFile
    from cierzo.weights.huggingface import open_huggingface
    from cierzo.weights.packed import FILE, PackedFolder

    file = gguf_file(path)
    if file is not None:
        return GgufFile(file)
    if (path / FILE).is_file():
        return PackedFolder(path)
    if (path / "params.json").is_file() and consolidated_files(path):
        return open_consolidated(path)
    if (path / "config.json").is_file():
        return open_huggingface(path)
    raise WeightsError(
        f"{path}: no weights: looked for params.json with consolidated*.safetensors or consolidated*.pth, "
        "for config.json with model.safetensors or model.safetensors.index.json, and for one *.gguf"
    )


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that `path` means: itself, or the only one in a folder without other weights."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise WeightsError(f"{path}: not a .gguf file: give a GGUF file, or the folder that the weights are in")
        return path
    if not path.is_dir():
        raise WeightsError(f"{path}: no such file or folder: give a folder of weights or a GGUF file")
    if any(path.glob("*.safetensors")) or any(path.glob("*.pth")):
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise WeightsError(f"{path}: holds {len(found)} GGUF files: name one, such as {found[0]}")
    return found[0] if found else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise WeightsError(f"{path}: not JSON ({error}): fetch it again") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: holds a {type(values).__name__} where an object was expected")
    return values


def whole(path: Path, values: Mapping[str, Any], key: str) -> int:
    """The positive whole number that a configuration must give for `key`."""
    if values.get(key) is None:
        raise WeightsError(f"{path}: no {key!r}: the model's shape is not complete without it")
    value = values[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise WeightsError(f"{path}: {key!r} must be a whole number of at least 1, not {value!r}")
    return value


def make_config(path: Path, *, experts: tuple[int, int] | None, **values: Any) -> ModelConfig:
    """`ModelConfig(**values)`, whose complaints name the file; `experts`: how many there are, how many a token uses."""
    try:
        return ModelConfig(**values, moe=MoeConfig(*experts) if experts else None)
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from error


def read_safetensors(path: Path, *, floats: bool = True) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, as views of the mapped file; with `floats`, other types are refused."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({one_line(error)}): fetch it again") from error
    if floats:
        check_floats(path, tensors)
    return tensors


def check_floats(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            raise WeightsError(
                f"{path}: tensor {name!r} is {dtype_name(tensor.dtype)}: only float32, float16 and bfloat16 are read; "
                "take the checkpoint that is not quantised, or a GGUF file"
            )


def common_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The narrowest type that holds all of `dtypes` exactly; float32 when there are none."""
    return reduce(torch.promote_types, set(dtypes) or {torch.float32})


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def one_line(error: Exception) -> str:
    """The first line of what another library says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
