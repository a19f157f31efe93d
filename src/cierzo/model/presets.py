"""The published shapes of the models that Cierzo is about."""

from dataclasses import replace

from cierzo.model.config import ModelConfig, MoeConfig

# v0.1's params.json has no limit; its Hugging Face config says 32,768.
_V01 = ModelConfig(
    dim=4096, n_layers=32, head_dim=128, hidden_dim=14336, n_heads=32, n_kv_heads=8, vocab_size=32_000,
    max_seq_len=32_768, rope_theta=10_000.0, sliding_window=4096,
)  # fmt: skip
_V02 = replace(_V01, rope_theta=1e6, sliding_window=None)
_LLAMA_2_7B = ModelConfig(
    dim=4096, n_layers=32, head_dim=128, hidden_dim=11_008, n_heads=32, n_kv_heads=32, vocab_size=32_000,
    max_seq_len=4096,
)  # fmt: skip
_SMOLLM2 = ModelConfig(
    dim=576, n_layers=30, head_dim=64, hidden_dim=1536, n_heads=9, n_kv_heads=3, vocab_size=49_152,
    max_seq_len=8192, rope_theta=100_000.0, tied_embeddings=True,
)  # fmt: skip

PRESETS: dict[str, ModelConfig] = {
    "mistral-7b-v0.1": _V01,
    "mistral-7b-v0.2": _V02,
    "mistral-7b-v0.3": replace(_V02, vocab_size=32_768),
    "mixtral-8x7b-v0.1": replace(_V02, moe=MoeConfig(num_experts=8, num_experts_per_tok=2)),
    "mistral-nemo-12b": replace(_V02, dim=5120, n_layers=40, vocab_size=131_072, max_seq_len=131_072),
    "ministral-8b-2410": replace(
        _V02, n_layers=36, hidden_dim=12_288, vocab_size=131_072, max_seq_len=131_072, rope_theta=1e8,
        sliding_window=(None, 32_768, 32_768, 32_768) * 9,
    ),
    "smollm2-135m": _SMOLLM2,
    "smollm2-360m": replace(_SMOLLM2, dim=960, n_layers=32, hidden_dim=2560, n_heads=15, n_kv_heads=5),
    "smollm2-1.7b": replace(
        _SMOLLM2, dim=2048, n_layers=24, hidden_dim=8192, n_heads=32, n_kv_heads=32, rope_theta=130_000.0
    ),
    "llama-2-7b": _LLAMA_2_7B,
    "code-llama-7b": replace(_LLAMA_2_7B, vocab_size=32_016, max_seq_len=16_384, rope_theta=1e6),
    "llama-2-13b": replace(_LLAMA_2_7B, dim=5120, n_layers=40, hidden_dim=13_824, n_heads=40, n_kv_heads=40),
}  # fmt: skip
