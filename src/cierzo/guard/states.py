"""What a language model makes of a text: the hidden states of its middle layers, as features for judging answers."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cierzo import ops
from cierzo.tokens.load import load_tokenizer
from cierzo.weights.load import load_model

_DEPTHS = (0.35, 0.5, 0.65, 0.75, 0.9)
"""Of the layers that are read: the first ones see words, the last ones the next word."""
_LONGEST = 300  # tokens of an answer: whoever refuses says so early


class StateReader:
    """Reads texts with the model of a file or folder, packed where native kernels run.

    Attributes:
        name: the model's.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.stem if path.is_file() else path.name
        self._tokenizer = load_tokenizer(path)
        self._model = load_model(path, packed=ops.machine().kernels is not None)
        layers = self._model.config.n_layers
        self._read = {min(layers - 1, int(depth * layers)) for depth in _DEPTHS}

    def answer(self, question: str, answer: str) -> NDArray[np.float32]:
        """What each layer that is read makes of an answer beyond its question: [layers, dim].

        That is the mean over the answer's tokens less that over the question's, so that what both are about, which
        says nothing of a refusal, is left out.
        """
        asked = self._tokenizer.encode(f"Question: {question}\nAnswer:")
        ids = [*asked, *self._tokenizer.encode(f" {answer}")[:_LONGEST]]
        config, context, found = self._model.config, ops.PackedContext([len(ids)]), []
        with torch.inference_mode():
            rotation = ops.rotation(context.positions, config.head_dim, config.rope_theta)
            x = ops.embed(torch.tensor(ids), self._model.tok_embeddings.weight)
            for number, layer in enumerate(self._model.layers):
                x = layer(x, rotation, context)
                if number in self._read:
                    normed = torch.nn.functional.rms_norm(x.float(), [config.dim])
                    found.append(normed[len(asked) :].mean(0) - normed[: len(asked)].mean(0))
        return torch.stack(found).numpy()
