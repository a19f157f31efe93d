"""Shapes: what is refused, and that the presets have the published sizes."""

import pytest

from cierzo.errors import CierzoError
from cierzo.model import PRESETS, ConfigError, ModelConfig, MoeConfig, Transformer
from cierzo.ops import Window
from support.models import tiny_config

PUBLISHED_PARAMETERS = {
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.2": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x7b-v0.1": 46_702_792_704,
    "mistral-nemo-12b": 12_247_782_400,
    "ministral-8b-2410": 8_019_808_256,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "code-llama-7b": 6_738_546_688,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
}
"""As their model cards' safetensors metadata counts them."""


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    assert PRESETS[name].n_params == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize(
    "config", [tiny_config(), tiny_config(tied_embeddings=True), tiny_config(moe=MoeConfig(4, 2))]
)  # fmt: skip
def test_n_params_counts_what_the_model_has(config: ModelConfig) -> None:
    assert config.n_params == sum(p.numel() for p in Transformer.without_weights(config).parameters())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dim": 0}, "dim must be a whole number of at least 1"),
        ({"n_heads": 4, "n_kv_heads": 3}, "multiple of n_kv_heads 3"),
        ({"head_dim": 7}, "head_dim must be even"),
        ({"sliding_window": 0}, "sliding_window 0"),
        ({"sliding_window": (4, None, 4)}, "3 entries for 2 layers"),
        ({"window_dilation": (1,)}, "1 entries for 2 layers"),
        ({"rope_theta": float("nan")}, "rope_theta must be a positive number"),
        ({"norm_eps": "small"}, "norm_eps must be a positive number"),
        ({"vocab_size": True}, "vocab_size must be a whole number"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        tiny_config(**changes)


@pytest.mark.parametrize("numbers", [(0, 0), (2, 3)])
def test_impossible_mixtures_are_refused(numbers: tuple[int, int]) -> None:
    with pytest.raises(CierzoError, match="num_experts_per_tok"):
        MoeConfig(*numbers)


def test_layers_with_the_same_window_form_a_group() -> None:
    groups = PRESETS["ministral-8b-2410"].window_groups
    assert [group.window for group in groups] == [None, Window(32_768)]
    assert groups[0].layers == tuple(range(0, 36, 4))
    assert len(groups[1].layers) == 27
    assert PRESETS["mistral-7b-v0.1"].windowed
    assert not PRESETS["ministral-8b-2410"].windowed


def test_a_dilated_window_reaches_further() -> None:
    assert Window(4, 3).reach == 10
    with pytest.raises(ValueError, match="size >= 1"):
        Window(4, 0)
