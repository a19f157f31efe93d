"""One interface over the formats that weights come in, and how a format is recognised."""

import json
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from cierzo.errors import WeightsError
from cierzo.model import ConfigError, ModelConfig, MoeConfig
from cierzo.ops import Format, PackedMatrix, quantize

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

LARGEST, LONGEST, DEEPEST = 2**20, 2**24, 2**12
"""The widest dimension or largest vocabulary, the longest text, and the most layers or experts that a file may declare:
far beyond every model, and small enough that no product of them overflows."""

PARAMETER = re.compile(
    r"(tok_embeddings|norm|output|layers\.\d+\.(attention\.w[qkvo]|attention_norm|ffn_norm"
    r"|feed_forward\.(w[123]|gate|experts\.\d+\.w[123])))\.weight"
)
"""The names of parameters, which are those of Mistral's own format."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


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

    def file(self, name: str) -> Path:
        """The file that holds a tensor."""
        ...

    def kind(self, name: str) -> str:
        """What a tensor is stored in, as its format calls it: "bfloat16", "Q4_0"."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One tensor: mapped memory when nothing had to be converted. Raises KeyError for a name not in `shapes`."""
        ...


class MappedTensors:
    """A `WeightSource` of mapped tensors out of `files`.

    `convert` makes what is stored into what the model computes with.
    """

    quantized = False

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        tensors: dict[str, Tensor],
        files: Mapping[str, Path],
        convert: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
    ) -> None:
        if config.tied_embeddings and "output.weight" in tensors:
            output = tensors.pop("output.weight")
            if not torch.equal(output, tensors.get("tok_embeddings.weight", output)):
                raise untied(path)
        self.path, self.config, self._tensors, self._convert = path, config, tensors, convert
        self.file = files.__getitem__
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.dtype = common_dtype(tensor.dtype for tensor in tensors.values() if tensor.ndim > 1)

    def tensor(self, name: str) -> Tensor:
        return self._convert(name, self._tensors[name])

    def kind(self, name: str) -> str:
        return dtype_name(self._tensors[name].dtype)

    def packed(self, name: str) -> PackedMatrix:
        return quantize(self.tensor(name), Format.Q8)


def open_source(path: Path, *, mapped: bool = True) -> WeightSource:
    """The checkpoint at `path`, a folder or a GGUF file. In a folder, packed goes first, then consolidated.

    With `mapped` false, packed matrices are copied out of their file.

    Raises `WeightsError` when nothing is recognised, or when the files are broken or of a model that cannot be run.
    """
    # Here, not above: the formats build on this module.
    from cierzo.weights.consolidated import consolidated_files, open_consolidated
    from cierzo.weights.gguf import GgufFile
    from cierzo.weights.huggingface import open_huggingface
    from cierzo.weights.packed import PackedFolder
    from cierzo.weights.packing import FILE

    file = gguf_file(path)
    if file is not None:
        return GgufFile(file)
    if (path / FILE).is_file():
        return PackedFolder(path, mapped=mapped)
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
    """The object in a JSON file; a key that is there twice, NaN, Infinity and halves of characters are refused."""
    try:
        data = path.read_bytes()
        values = json.loads(data, object_pairs_hook=unique_keys, parse_constant=_no_number)
        if _SURROGATE.search(data):
            json.dumps(values, ensure_ascii=False).encode()  # raises a ValueError when one is without the other
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise WeightsError(f"{path}: not JSON ({error}): fetch it again") from error
    except RecursionError:
        raise WeightsError(f"{path}: JSON nested too deeply: fetch it again") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: holds a {type(values).__name__} where an object was expected")
    return values


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, as `object_pairs_hook` of `json.loads`. Raises ValueError when a key is there twice."""
    values = dict(pairs)
    if len(values) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {shown(twice)} is there twice")
    return values


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def whole(path: Path, values: Mapping[str, Any], key: str, *, most: int = LARGEST) -> int:
    """The positive whole number that a configuration must give for `key`."""
    if values.get(key) is None:
        raise WeightsError(f"{path}: no {key!r}: the model's shape is not complete without it")
    value = values[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise WeightsError(f"{path}: {key!r} must be a whole number of at least 1, not {shown(value)}")
    if value > most:
        raise WeightsError(f"{path}: {key!r} is {shown(value)}, and no model has more than {most}: fetch it again")
    return value


def flag(path: Path, values: Mapping[str, Any], key: str) -> bool:
    """The setting `key`, which is off when it is null or not there."""
    value = values.get(key)
    if value is not None and not isinstance(value, bool):
        raise WeightsError(f"{path}: {key!r} must be true or false, not {shown(value)}")
    return bool(value)


def shown(value: Any) -> str:
    """What a file says, short enough for a message."""
    return _short.repr(value)


def make_config(
    path: Path, *, experts: tuple[int, int] | None, keys: Mapping[str, str] = MappingProxyType({}), **values: Any
) -> ModelConfig:
    """`ModelConfig(**values)`, whose complaints name the file.

    Args:
        experts: how many there are, how many a token uses.
        keys: what the file calls values that have another name there, for messages.
    """
    try:
        return ModelConfig(**values, moe=MoeConfig(*experts) if experts else None)
    except ConfigError as error:
        named = [f"{name} is {theirs!r}" for name, theirs in keys.items() if re.search(rf"\b{name}\b", str(error))]
        raise WeightsError(f"{path}: {error}" + (f" ({', '.join(named)} there)" if named else "")) from error


def read_safetensors(path: Path, *, floats: bool = True) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, as views of the mapped file; with `floats`, other types are refused.

    (The library checks offsets and lengths.)
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({one_line(error)}): fetch it again") from error
    if floats:
        check_tensors(path, tensors)
    return tensors


def check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors of a type that is read, none of them empty: no loop over a dimension goes beyond what the file holds."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            raise WeightsError(
                f"{path}: tensor {name!r} is {dtype_name(tensor.dtype)}: only float32, float16 and bfloat16 are read; "
                "take the checkpoint that is not quantised, or a GGUF file"
            )
        if not tensor.numel():
            raise WeightsError(f"{path}: tensor {name!r} is {list(tensor.shape)}, which is empty: fetch it again")


def assign(stored_as: dict[str, str], ours: str, stored: str, file: Path) -> None:
    """Note in `stored_as` that the parameter `ours` is the tensor `stored` of a file.

    Raises:
        WeightsError: another tensor is that parameter already.
    """
    here = f"{stored!r} of {file.name}"
    if ours in stored_as:
        raise WeightsError(
            f"{file}: tensors {stored_as[ours]} and {here} are both the parameter {ours!r}: remove one of them, or "
            "fetch the model again"
        )
    stored_as[ours] = here


def untied(path: Path) -> WeightsError:
    return WeightsError(
        f"{path}: embeddings are declared tied (tie_word_embeddings or tied_embeddings), but 'output.weight' "
        "(lm_head.weight) differs from 'tok_embeddings.weight' (model.embed_tokens.weight): declare them untied"
    )


def common_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The narrowest type that holds all of `dtypes` exactly; float32 when there are none."""
    return reduce(torch.promote_types, set(dtypes) or {torch.float32})


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def one_line(error: Exception) -> str:
    """The first line of what another library says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
