"""Calibrated rounding: against plain code, and whether it does what it is for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cierzo.errors import CierzoError
from cierzo.model import ModelConfig, MoeConfig
from cierzo.ops import Format, PackedContext, quantize
from cierzo.weights import calibrate, load_model, open_source, quantize_model
from cierzo.weights.calibrate import Method, quantize_calibrated
from cierzo.weights.gptq import Moments, blocks, grid, nearest, round_matrix
from cierzo.weights.layer import Layer, load_layer
from cierzo.weights.packed import inputs_of
from cierzo.weights.packing import FILE
from cierzo.weights.scaling import scale_layer
from support.checkpoints import random_weights, write_consolidated


def shape(**values: Any) -> ModelConfig:
    usual: dict[str, Any] = {
        "dim": 64, "n_layers": 3, "head_dim": 16, "hidden_dim": 96, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 120,
        "max_seq_len": 128, "sliding_window": 24,
    }  # fmt: skip
    return ModelConfig(**usual | values)


MODELS = {
    "mistral": shape(),
    "tied": shape(tied_embeddings=True, sliding_window=None),
    "mixtral": shape(moe=MoeConfig(3, 2), n_layers=2),
}


def texts(config: ModelConfig, count: int = 6, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (count, 48), generator=generator).tolist()


def correlated(tokens: int, inputs: int, seed: int = 0) -> Tensor:
    """Inputs that lie near a subspace, some much larger than others, as a model's do."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, inputs // 4, generator=generator) @ torch.randn(
        inputs // 4, inputs, generator=generator
    )
    noise = torch.randn(tokens, inputs, generator=generator)
    return (mixed + 0.3 * noise) * torch.exp(torch.randn(inputs, generator=generator))


def moments_of(x: Tensor) -> Moments:
    moments = Moments(x.shape[1])
    moments.add(x)
    return moments


def by_least_squares(weights: Tensor, x: Tensor, format: Format) -> Tensor:
    """The article's rule in its first form, in float64, with the same damping.

    When a column is rounded, all that are left become what makes up best for the errors so far (least squares).
    """
    to, moments = grid(format), moments_of(x)
    h = moments.sums[0].double()
    h = h + 0.01 * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    original, left = weights.double(), weights.double().clone()
    rounded = torch.empty_like(left)
    for column in range(left.shape[1]):
        if column % to.span == 0:
            span = slice(column, column + to.span)
            scale = to.fit(left[:, span].float(), moments.diagonal[span])
        if column % to.group == 0:
            group = slice(column, column + to.group)
            unit = to.unit(scale, to.steps(left[:, group].float(), moments.diagonal[group], scale))
        rounded[:, column] = to.values(to.codes(left[:, column].float(), unit), unit)
        rest = slice(column + 1, None)
        lost = original[:, : column + 1] - rounded[:, : column + 1]
        if column + 1 < left.shape[1]:
            makes_up = torch.linalg.solve(h[rest, rest], h[rest, : column + 1] @ lost.T).T
            left[:, rest] = original[:, rest] + makes_up
    return rounded.float()


@pytest.mark.parametrize("format", [Format.Q4, Format.Q4T, Format.Q8])
def test_correction_is_the_articles(format: Format) -> None:
    torch.manual_seed(0)
    weights, x = torch.randn(24, 256), correlated(600, 256)
    got = round_matrix(weights, grid(format), moments_of(x)).unpacked()
    expected = by_least_squares(weights, x, format)
    # A value on the edge between two steps may fall to either side, and what follows with it.
    assert ((got - expected).abs() < 1e-5).float().mean() > 0.98
    lost, plain = ((weights - q) @ x.T for q in (got, nearest(weights, grid(format), moments_of(x).diagonal)))
    assert lost.square().sum() < 0.6 * plain.square().sum()


@pytest.mark.parametrize("format", [Format.Q4, Format.Q4T, Format.Q8])
def test_without_correction_it_is_the_nearest(format: Format) -> None:
    torch.manual_seed(1)
    weights, x = torch.randn(40, 400), correlated(100, 400)
    got = round_matrix(weights, grid(format), moments_of(x), correct=False).unpacked()
    assert torch.equal(got, nearest(weights, grid(format), moments_of(x).diagonal))


def test_the_table_format_rounds_as_its_kernel_where_all_inputs_count_alike() -> None:
    torch.manual_seed(3)
    weights = torch.randn(50, 500)
    ours, kernels = nearest(weights, grid(Format.Q4T), torch.ones(500)), quantize(weights, Format.Q4T).unpacked()
    assert ((ours - kernels).abs() < 1e-6).float().mean() > 0.99  # but for ties


def test_inputs_that_never_come_and_matrices_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from cierzo.weights import gptq

    monkeypatch.setattr(gptq, "_WIDEST", 128)
    assert [(part.start, part.stop) for part in blocks(300)] == [(0, 192), (192, 300)]
    torch.manual_seed(2)
    weights, x = torch.randn(16, 300), correlated(200, 300)
    x[:, 40:80] = 0
    got = round_matrix(weights, grid(Format.Q4), moments_of(x)).unpacked()
    assert got.isfinite().all()
    assert (got - weights).norm() < 0.3 * weights.norm()
    assert round_matrix(weights, grid(Format.Q8), Moments(300)).unpacked().isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_scaling_changes_nothing_but_the_rounding(name: str, tmp_path: Path) -> None:
    config = MODELS[name]
    source = open_source(write_consolidated(tmp_path / "m", config, random_weights(config)))
    layer, before = Layer(config, 0, load_layer(source, 0)), load_layer(source, 0)
    generator = torch.Generator().manual_seed(0)
    uneven = torch.exp(2 * torch.randn(config.dim, generator=generator))
    states = [torch.randn(40, config.dim, generator=generator) * uneven for _ in range(3)]
    expected = [layer.forward(x) for x in states]
    scale_layer(layer, states, {name: grid(Format.Q4) for name in layer.matrices})
    changed = [name for name in before if not torch.equal(layer.weights[name], before[name])]
    assert "attention_norm.weight" in changed
    for x, y in zip(states, expected, strict=True):
        torch.testing.assert_close(layer.forward(x), y, rtol=1e-4, atol=1e-4 * float(y.abs().max()))


def test_an_expert_is_rounded_for_the_tokens_that_go_to_it(tmp_path: Path) -> None:
    config = MODELS["mixtral"]
    source = open_source(write_consolidated(tmp_path / "m", config, random_weights(config)))
    layer = Layer(config, 0, load_layer(source, 0))
    states = [torch.randn(60, config.dim, generator=torch.Generator().manual_seed(0))]
    attended = layer.attended(states[0])
    normed = torch.nn.functional.rms_norm(attended, [config.dim], layer.weights["ffn_norm.weight"], config.norm_eps)
    scores = (normed @ layer.weights["feed_forward.gate.weight"].T).double()
    scores[torch.arange(60), scores.argmin(-1)] = -torch.inf  # two of three experts are chosen
    shares = scores.softmax(-1).clamp(min=0.1).float()
    assert (shares == 0.1).sum() >= 60
    for names, found in layer.stages(states):
        if "experts" in names[0]:
            expert = int(names[0].split(".")[2])
            inputs = normed if names[0].endswith("w1.weight") else layer.hidden(attended, f"experts.{expert}.")
            counted = inputs * shares[:, expert, None]
            torch.testing.assert_close(found.sums[0], counted.T @ counted, rtol=1e-4, atol=1e-4)


def logits(path: Path, ids: list[list[int]], **options: Any) -> Tensor:
    model = load_model(path, **options)
    with torch.inference_mode():
        scores: Tensor = model(torch.tensor(ids).flatten(), PackedContext([len(text) for text in ids]))
    return scores


@pytest.mark.parametrize("format", ["q4", "q4t"])
@pytest.mark.parametrize("name", MODELS)
def test_a_calibrated_model_loses_less(name: str, format: str, tmp_path: Path) -> None:
    config = MODELS[name]
    original = write_consolidated(tmp_path / "m", config, random_weights(config))
    seen, unseen = texts(config, 24), texts(config, seed=1)
    quantize_model(original, tmp_path / "plain", format=format)
    reports: list[tuple[int, int]] = []
    quantize_calibrated(
        original, tmp_path / "calibrated", seen, format=format, progress=lambda *report: reports.append(report)
    )
    assert reports == sorted(reports)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert sorted(f.name for f in (tmp_path / "calibrated").iterdir()) == [FILE, "params.json"]
    expected = logits(original, unseen)
    plain, ours = ((logits(tmp_path / which, unseen) - expected).square().mean() for which in ("plain", "calibrated"))
    assert ours < 0.9 * plain
    # As the kernels compute it, too (activations in int8).
    native = logits(tmp_path / "calibrated", unseen, packed=True)
    assert (native - expected).square().mean() < 1.2 * ours + 0.05 * expected.var()


@pytest.mark.parametrize("format", ["q4", "q4t"])
def test_mixed_precision_keeps_its_size_and_helps(format: str, tmp_path: Path) -> None:
    config = MODELS["mistral"]
    low = format.upper()
    original = write_consolidated(tmp_path / "m", config, random_weights(config))
    seen, unseen = texts(config, 12), texts(config, seed=1)
    expected, lost = logits(original, unseen), []
    for bits in (7.0, 8.5, 10.0):
        out = tmp_path / f"{bits:g}"
        quantize_calibrated(original, out, seen, format=format, method=Method(bits=bits))
        assert 8 * (out / FILE).stat().st_size <= bits * config.n_params
        kinds = {open_source(out).kind(name) for name in open_source(original).shapes if "norm" not in name}
        assert kinds == ({low, "Q8"} if bits < 10 else {"Q8", low} if low in kinds else {"Q8"})
        lost.append(float((logits(out, unseen, packed=True) - expected).square().mean()))
    assert lost[0] > lost[1] > lost[2]
    with pytest.raises(CierzoError, match=rf"takes at least .* bits a weight in {low}, so 3 are too few"):
        quantize_calibrated(original, tmp_path / "out", seen, format=format, method=Method(bits=3))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bits", [None, 8.5])
def test_work_that_was_stopped_goes_on(bits: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MODELS["mistral"]
    original = write_consolidated(tmp_path / "m", config, random_weights(config))
    quantize_calibrated(original, tmp_path / "whole", texts(config), format="q4", method=Method(bits=bits))
    rounded: list[str] = []
    before = calibrate._Run._matrix

    def counted(self: Any, name: str, weights: Tensor, moments: Moments) -> Any:
        rounded.append(name)
        if len(rounded) == 17:
            raise KeyboardInterrupt
        return before(self, name, weights, moments)

    monkeypatch.setattr(calibrate._Run, "_matrix", counted)
    with pytest.raises(KeyboardInterrupt):
        quantize_calibrated(original, tmp_path / "out", texts(config), format="q4", method=Method(bits=bits))
    assert not (tmp_path / "out").exists()
    done = len(rounded)
    quantize_calibrated(original, tmp_path / "out", texts(config), format="q4", method=Method(bits=bits))
    assert len(rounded) - done == 7 + 1  # the layer that was broken off, and the output
    assert (tmp_path / "out" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


def test_a_disk_that_fills_up_is_a_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MODELS["mistral"]
    original = write_consolidated(tmp_path / "m", config, random_weights(config))
    save = torch.save

    def full(state: object, file: object) -> None:
        with Path("/dev/full").open("wb", buffering=0) as disk:
            save(state, disk)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(CierzoError, match="No space left on device: choose a folder with room"):
            quantize_calibrated(original, tmp_path / "out", texts(config), format="q4")
    assert (tmp_path / ".out.partial" / FILE).is_file()
    quantize_calibrated(original, tmp_path / "out", texts(config), format="q4")


def test_other_settings_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MODELS["mistral"]
    original = write_consolidated(tmp_path / "m", config, random_weights(config))
    before = calibrate._Run._layer

    def stops(self: Any, layer: Layer, states: list[Tensor]) -> None:
        if layer.number == 1:
            raise KeyboardInterrupt
        before(self, layer, states)

    monkeypatch.setattr(calibrate._Run, "_layer", stops)
    with pytest.raises(KeyboardInterrupt):
        quantize_calibrated(original, tmp_path / "out", texts(config, seed=1), format="q4")
    monkeypatch.setattr(calibrate._Run, "_layer", before)
    quantize_calibrated(original, tmp_path / "out", texts(config), format="q4")
    quantize_calibrated(original, tmp_path / "again", texts(config), format="q4")
    assert (tmp_path / "out" / FILE).read_bytes() == (tmp_path / "again" / FILE).read_bytes()


def test_texts_of_another_model(tmp_path: Path) -> None:
    config = MODELS["mistral"]
    original = write_consolidated(tmp_path / "m", config, random_weights(config))
    wrongs: list[list[list[int]]] = [[], [[]], [[5000]], [[-1]]]
    for wrong in wrongs:
        with pytest.raises(CierzoError, match="calibration texts have no tokens, or tokens that are not this model's"):
            quantize_calibrated(original, tmp_path / "out", wrong)
    with pytest.raises(CierzoError, match=r"can be packed in .*, not in 'q5'"):
        quantize_calibrated(original, tmp_path / "out", texts(config), format="q5")


def test_experts_and_matrices_of_one_input_change_together_in_the_table_format(tmp_path: Path) -> None:
    """Kernels multiply them with one row of activations, whose spans are Q4T's or those of 8 bits."""
    config = MODELS["mixtral"]
    original = write_consolidated(tmp_path / "m", config, random_weights(config))
    quantize_calibrated(original, tmp_path / "out", texts(config), format="q4t", method=Method(bits=8))
    source = open_source(tmp_path / "out")
    kinds: dict[str, set[str]] = {}
    for name in source.shapes:
        if source.kind(name) in ("Q4T", "Q8") and name.startswith("layers"):
            kinds.setdefault(inputs_of(name), set()).add(source.kind(name))
    assert sorted(kinds) == [f"layers.{n}.{part}" for n in range(2) for part in (
        "attention.qkv", "attention.wo", "feed_forward.gates", "feed_forward.w2")]  # fmt: skip
    assert {tuple(kind) for kind in kinds.values()} == {("Q4T",), ("Q8",)}
    assert logits(tmp_path / "out", texts(config, 2), packed=True).isfinite().all()
