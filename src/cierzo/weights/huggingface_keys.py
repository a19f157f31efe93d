"""What transformers 5.23 does with every key that the `config.json` of a supported model can carry.

The supported models are those of model_type mistral, ministral, mixtral and llama. A key is obeyed, refused or without
effect on the scores of the next token. Keys that are in none of the three tables are without effect too: transformers
stores them, and no code of these models reads them. `tests/weights/test_huggingface_keys.py` checks the tables against
transformers itself.

Sources: the fields of the configuration classes and of `PreTrainedConfig`, and every `getattr(config, ...)` in
transformers' loading, masking and cache code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cierzo.errors import WeightsError
from cierzo.weights.source import shown

KINDS = frozenset({"mistral", "ministral", "mixtral", "llama"})
_WINDOWED = KINDS - {"llama"}

OBEYED: dict[str, frozenset[str]] = {
    "model_type": KINDS,
    "architectures": KINDS,
    "vocab_size": KINDS,
    "hidden_size": KINDS,
    "intermediate_size": KINDS,
    "num_hidden_layers": KINDS,
    "num_attention_heads": KINDS,
    "num_key_value_heads": KINDS,
    "head_dim": KINDS,
    "hidden_act": KINDS,
    "max_position_embeddings": KINDS,
    "rms_norm_eps": KINDS,
    "tie_word_embeddings": KINDS,
    "rope_theta": KINDS,
    "rope_scaling": KINDS,
    "rope_parameters": KINDS,
    "sliding_window": KINDS,
    "layer_types": KINDS,
    "num_local_experts": frozenset({"mixtral"}),
    "num_experts": frozenset({"mixtral"}),
    "num_experts_per_tok": frozenset({"mixtral"}),
}
"""Keys that this reader takes into the model's configuration or checks, by the model types that they matter to.

- `layer_types` says which layers have the window, but to transformers only for mistral and ministral: its AutoConfig
  reads a mistral configuration with that key as a ministral one. The masks of mixtral follow `sliding_window` alone.
  Llama's follow neither, while its key-value cache follows both, so that generating gives other scores than reading: a
  window is refused there.
- `num_experts` is another name of `num_local_experts`, and wins over it.
- `rope_scaling` wins over `rope_parameters`; both may hold the base, which is otherwise `rope_theta`.
- `num_key_value_heads` null is all heads (transformers: only for llama; the others refuse it). `head_dim` null is
  hidden_size / num_attention_heads (transformers: not for ministral, which then cannot be built).
- `use_sliding_window` is not among them: these models do not read it.
"""


class Refusal(NamedTuple):
    """Values that say the same as no such key, and why every other value is refused."""

    harmless: tuple[Any, ...]
    why: str


_NO_BIAS = Refusal((None, False), "this model has no biases")
_ONE_TEXT_MODEL = Refusal((None,), "a model inside the model is not read: take the text model's own configuration")
_BIDIRECTIONAL = "attention here is causal, and an embedding model that attends to later tokens cannot be run"

REFUSED: dict[str, Refusal] = {
    "is_causal": Refusal((True,), _BIDIRECTIONAL),  # null and 0 are false to transformers
    "causal": Refusal((None, True), _BIDIRECTIONAL),  # this and the next two: other models' names of it
    "bidirectional": Refusal((None, False), _BIDIRECTIONAL),
    "use_bidirectional_attention": Refusal((None, False), _BIDIRECTIONAL),
    "attention_bias": _NO_BIAS,
    "mlp_bias": _NO_BIAS,
    "quantization_config": Refusal((None,), "take the model that is not quantised, or a GGUF file"),
    "partial_rotary_factor": Refusal((None, 1, 1.0), "heads are rotated whole"),
    "per_layer_config": Refusal((None, {}), "all layers have one shape"),
    "attention_chunk_size": Refusal((None,), "attention in chunks cannot be run"),
    "kv_sharing_modes": Refusal((None,), "every layer has keys and values of its own"),
    "text_config": _ONE_TEXT_MODEL,
    "text_encoder": _ONE_TEXT_MODEL,
    "decoder": _ONE_TEXT_MODEL,
    "generator": _ONE_TEXT_MODEL,
    "transformers_weights": Refusal((None,), "weights are read from model.safetensors: rename the file"),
    "configuration_files": Refusal((None, []), "config.json alone is read: replace it with the file that is meant"),
    "fusion_config": Refusal((None,), "layers are not fused: remove the key"),
}
"""Keys that change what a model computes, in a way that cannot be run here, or that transformers does not load at all.

`attention_bias`, `mlp_bias` (both but for llama), `causal`, `bidirectional`, `use_bidirectional_attention` and
`partial_rotary_factor` outside of the rope settings are without effect in transformers. Whoever wrote them meant a
model that this is not.
"""

WITHOUT_EFFECT = frozenset({
    # Windows of other models.
    "use_sliding_window", "max_window_layers", "sliding_window_pattern",
    # Training, and measurements beside the scores.
    "attention_dropout", "hidden_dropout", "classifier_dropout", "initializer_range", "router_jitter_noise",
    "router_aux_loss_coef", "output_router_logits", "gradient_checkpointing", "output_hidden_states",
    "output_attentions", "tie_last_hidden_states",
    # How it is computed, with the same result.
    "pretraining_tp", "use_cache", "return_dict", "chunk_size_feed_forward", "attn_implementation",
    "experts_implementation", "torch_dtype", "dtype", "torchscript", "distributed_config",
    # Token ids, which the tokenizer's part reads where it needs them.
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id",
    # What encoders, encoders with decoders and classifiers have.
    "is_decoder", "is_encoder_decoder", "add_cross_attention", "cross_attention_hidden_size", "tie_encoder_decoder",
    "pruned_heads", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params",
    # Where the file comes from; code of its own is never run.
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "auto_map", "tokenizer_class", "prefix",
})  # fmt: skip
"""Keys that transformers knows for every model and that do not change the scores of these."""


def check_keys(path: Path, given: Mapping[str, Any]) -> None:
    """Raises `WeightsError`, which names the key, for what cannot be run as transformers would."""
    for key, (harmless, why) in REFUSED.items():
        if key in given and not any(type(given[key]) is type(value) and given[key] == value for value in harmless):
            raise WeightsError(f"{path}: {key!r} {shown(given[key])} is not supported: {why}")
