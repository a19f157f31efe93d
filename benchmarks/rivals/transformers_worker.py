"""transformers in bfloat16, with random weights of the GGUF file's shape. See worker.py; runs in Cierzo's environment.

A model of more than 8 layers of a 7B's width is measured at 4 layers and at 1, and its times are what the difference
says for all layers.
"""

import platform
import time
from pathlib import Path
from typing import Any

import torch
from worker import Job, run

from cierzo.weights.gguf import read_config
from cierzo.weights.gguf_header import read_header

MOST_PARAMETERS = 2_000_000_000
LAYERS = 4


class Transformers:
    loads = False

    def __init__(self, job: Job) -> None:
        import transformers

        torch.set_num_threads(job.threads)
        path = Path(job.model)
        config = read_config(path, read_header(path))
        self._layers = config.n_layers
        kept = LAYERS if config.n_params > MOST_PARAMETERS else config.n_layers
        own = transformers.MistralConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.hidden_dim,
            num_hidden_layers=kept,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm_eps,
            sliding_window=None,
            tie_word_embeddings=config.tied_embeddings,
        )
        torch.set_default_dtype(torch.bfloat16)
        self._model: Any = transformers.MistralForCausalLM(own).eval()
        parameters = sum(p.numel() for p in self._model.parameters())
        self.absent_bytes = 2 * (config.n_params - parameters)
        self.versions = {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        self.flags = {
            "dtype": "bfloat16",
            "threads": job.threads,
            "attention": own._attn_implementation,
            "layers": f"{kept} of {self._layers}",
            "weight_bytes": 2 * (config.n_params - (0 if config.tied_embeddings else config.vocab_size * config.dim)),
        }

    def generate(self, prompts: list[list[int]], steps: int) -> tuple[float, float]:
        layers = self._model.model.layers
        first, rest = self._timed(prompts, steps)
        if len(layers) == self._layers:
            return first, rest
        self._keep(layers[:1])
        one_first, one_rest = self._timed(prompts, steps)
        self._keep(layers)
        share = (self._layers - len(layers)) / (len(layers) - 1)
        return first + share * (first - one_first), rest + share * (rest - one_rest)

    def _keep(self, layers: Any) -> None:
        self._model.model.layers = layers
        self._model.config.num_hidden_layers = len(layers)

    @torch.inference_mode()
    def _timed(self, prompts: list[list[int]], steps: int) -> tuple[float, float]:
        start = time.perf_counter()
        answer = self._model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        first = time.perf_counter()
        for _ in range(steps):
            tokens = answer.logits[:, -1:].argmax(-1)
            answer = self._model(tokens, past_key_values=answer.past_key_values, use_cache=True)
        return first - start, time.perf_counter() - first


if __name__ == "__main__":
    run(Transformers)
