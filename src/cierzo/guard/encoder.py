"""A small encoder that reads the texts of which the words alone do not tell enough.

MiniLM (Wang et al., arXiv:2002.10957; six layers of BERT, arXiv:1810.04805, 22 million parameters), tuned on the
further sets (`train_encoder.py`). Its states are features, from which `cierzo moderate train` learns heads beside the
words' weights. It runs in a few milliseconds on the kernels that language models run on.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cierzo import ops
from cierzo.errors import CierzoError

HEADS = 12
READ = 4
"""Layers whose states are features, the last ones."""
LONGEST = 256
"""Tokens of a text that are read; a span of the guard has about 130."""
_EPS = 1e-12
MATRICES = ("qkv", "out", "up", "down")
"""A layer's matrices, which are packed in files, as the words' vectors are."""


class Encoder:
    """Bidirectional layers over words, with norms behind each sum (as BERT has them).

    Args:
        weights: `words` [V, D] and `places` [P, D]; of layer n `n.qkv` [3 D, D], `n.out` [D, D], `n.up` [F, D],
            `n.down` [D, F], their biases (`n.qkv_bias`, ...); `norm`, `n.attention_norm` and `n.ffn_norm` [2, D],
            weight and bias.
        vocabulary: BERT's pieces of words, in the order of `words`.
        dropout: of what is added to the residual, while training.
    """

    def __init__(self, weights: Mapping[str, Any], vocabulary: Sequence[str], dropout: float = 0.0) -> None:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        self.weights, self.vocabulary, self._dropout = dict(weights), list(vocabulary), dropout
        numbers = {piece: number for number, piece in enumerate(vocabulary)}
        self._tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
        self._tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._first, self._last = numbers["[CLS]"], numbers["[SEP]"]
        self.layers = sum(name.endswith(".qkv") for name in weights)
        self._packed: ops.EncoderLayers | None = None

    def encode(self, text: str, longest: int = LONGEST) -> list[int]:
        """Token ids of a text, between BERT's marks, at most `longest` of them."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self._first, *ids[: longest - 2], self._last]

    def read(self, text: str) -> NDArray[np.float32]:
        """The mean over a normalised text's tokens of each layer that is read: [features]."""
        ids = torch.tensor([self.encode(text)])
        with torch.inference_mode():
            if self._packed is not None:
                means = self._packed.means(self._embedded(ids))[-READ:]
            else:
                means = torch.stack([state[0].mean(0) for state in self.states(ids, None)[-READ:]])
            return means.flatten().numpy()

    def states(self, ids: Tensor, there: Tensor | None) -> list[Tensor]:
        """What each layer makes of texts: tokens [B, T], those that are `there` [B, T] (all when None) -> [B, T, D]."""
        w = self.weights
        batch, length = ids.shape
        x = self._dropped(self._embedded(ids))
        mask = None if there is None else there.bool()[:, None, None, :]
        found = []
        for n in range(self.layers):
            q, k, v = (
                part.view(batch, length, HEADS, -1).transpose(1, 2) for part in self._linear(x, f"{n}.qkv").chunk(3, -1)
            )
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(0, 1).flatten(1)
            x = _norm(x + self._dropped(self._linear(mixed, f"{n}.out")), w[f"{n}.attention_norm"])
            hidden = F.gelu(self._linear(x, f"{n}.up"))
            x = _norm(x + self._dropped(self._linear(hidden, f"{n}.down")), w[f"{n}.ffn_norm"])
            found.append(x.view(batch, length, -1))
        return found

    def _embedded(self, ids: Tensor) -> Tensor:
        """[B, T] -> [B T, D]."""
        batch, length = ids.shape
        words = ops.embed(ids.flatten(), self.weights["words"])
        return _norm(words + self.weights["places"][:length].repeat(batch, 1), self.weights["norm"])

    def _linear(self, x: Tensor, name: str) -> Tensor:
        bias = self.weights[f"{name}_bias"]
        return ops.project_out(x, self.weights[name], bias.repeat(len(x), 1))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self._dropout) if self._dropout else x

    @classmethod
    def load(cls, path: Path) -> "Encoder":
        """That of a file that `save` wrote.

        Raises:
            CierzoError: there is no such file, or it is something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as opened:
                about = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            shapes = {name: tuple(shape) for name, shape in json.loads(about["shapes"]).items()}
            weights: dict[str, Any] = {
                name: _matrix(shapes[name], tensor) if name in shapes else tensor.float()
                for name, tensor in tensors.items()
            }
            encoder = cls(weights, about["vocabulary"].split("\n"))
            if ops.machine().kernels is not None:
                layers = [
                    ops.EncoderWeights(*(weights[f"{n}.{name}"] for name in ops.EncoderWeights._fields))
                    for n in range(encoder.layers)
                ]
                encoder._packed = ops.EncoderLayers(layers, n_heads=HEADS, eps=_EPS)
            return encoder
        except (OSError, SafetensorError, KeyError, ValueError, AttributeError, TypeError) as error:
            raise CierzoError(f"{path} is no encoder: {error}; `cierzo moderate train-encoder` makes one") from None

    def save(self, path: Path, about: Mapping[str, str]) -> None:
        """Write the weights, matrices in 4 bits; `about` tells what they were learnt from."""
        from safetensors.torch import save_file

        partial = path.with_name(f".{path.name}.partial")
        packed = {
            name: ops.quantize(weight.detach(), ops.Format.Q4T)
            for name, weight in self.weights.items()
            if name == "words" or name.rpartition(".")[2] in MATRICES
        }
        rest = {name: weight.detach().half() for name, weight in self.weights.items() if name not in packed}
        shapes = json.dumps({name: list(matrix.shape) for name, matrix in packed.items()})
        tensors = {name: matrix.data for name, matrix in packed.items()} | rest
        save_file(tensors, partial, {"shapes": shapes, "vocabulary": "\n".join(self.vocabulary), **about})
        partial.replace(path)


def _matrix(shape: tuple[int, ...], data: Tensor) -> ops.Weight:
    """As kernels take it; without them in float32 at once, since unpacking it for every text would take longer."""
    packed = ops.PackedMatrix(ops.Format.Q4T, shape[0], shape[1], data)
    return packed if ops.machine().kernels is not None else packed.unpacked()


def _norm(x: Tensor, weight_and_bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight_and_bias[0], weight_and_bias[1], _EPS)
