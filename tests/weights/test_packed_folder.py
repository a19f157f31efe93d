"""Our own packed format: written whole or not at all, read back as it was, and not trusted."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cierzo.errors import CierzoError, WeightsError
from cierzo.model import ModelConfig, MoeConfig
from cierzo.ops import Format, PackedMatrix, quantize
from cierzo.weights import load_model, open_source, quantize_model
from cierzo.weights.export import export_huggingface
from cierzo.weights.packing import FILE, PackedWriter
from support.checkpoints import huggingface_model, random_weights, write_consolidated, write_gguf

CONFIG = ModelConfig(
    dim=40, n_layers=2, head_dim=8, hidden_dim=72, n_heads=4, n_kv_heads=2, vocab_size=100, max_seq_len=128,
    sliding_window=(7, None),
)  # fmt: skip

CONFIG_TEXT = json.dumps(asdict(CONFIG))


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return random_weights(CONFIG)


@pytest.fixture
def original(tmp_path: Path, weights: dict[str, torch.Tensor]) -> Path:
    folder = write_consolidated(tmp_path / "tiny-instruct", CONFIG, weights)
    (folder / "tokenizer.model.v3").write_bytes(b"a tokenizer")
    return folder


@pytest.mark.parametrize("format", [Format.Q4T, Format.Q4, Format.Q8])
def test_a_packed_model_reads_back(
    tmp_path: Path, original: Path, weights: dict[str, torch.Tensor], format: Format
) -> None:
    out = tmp_path / "packed"
    reports: list[tuple[int, int]] = []
    quantize_model(
        original, out, format=format.name.lower(), progress=lambda done, total: reports.append((done, total))
    )
    assert reports[-1] == (CONFIG.n_params, CONFIG.n_params)
    assert sorted(f.name for f in out.iterdir()) == [FILE, "params.json", "tokenizer.model.v3"]
    assert [f for f in tmp_path.iterdir() if f.name.startswith(".")] == []

    model = load_model(out, packed=True)
    assert model.config == CONFIG
    wq = model.layers[1].attention.wq.weight  # type: ignore[union-attr]
    assert isinstance(wq, PackedMatrix)
    assert wq.data.data_ptr() % 64 == 0
    assert torch.equal(wq.data, quantize(weights["layers.1.attention.wq.weight"], format).data)
    embeddings = model.tok_embeddings.weight
    assert isinstance(embeddings, PackedMatrix)
    assert embeddings.format is Format.Q8
    assert torch.equal(model.norm.weight, weights["norm.weight"])

    unpacked = load_model(out)  # as float32, where no kernels are
    assert torch.equal(unpacked.layers[1].attention.wq.weight, wq.unpacked())  # type: ignore[union-attr, arg-type]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of what is mapped")
def test_matrices_can_leave_their_file(tmp_path: Path, original: Path) -> None:
    quantize_model(original, tmp_path / "packed")

    def matrix(mapped: bool) -> PackedMatrix:
        found = load_model(tmp_path / "packed", packed=True, mapped=mapped).tok_embeddings.weight
        assert isinstance(found, PackedMatrix)
        return found

    def file_of(matrix: PackedMatrix) -> str:
        """What the memory there is mapped from."""
        for line in Path("/proc/self/maps").read_text().splitlines():
            start, end = (int(each, 16) for each in line.split()[0].split("-"))
            if start <= matrix.data.data_ptr() < end:
                return line
        raise AssertionError("nowhere")

    mapped, copied = matrix(True), matrix(False)
    assert FILE in file_of(mapped)
    assert FILE not in file_of(copied)
    assert torch.equal(mapped.data, copied.data)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path, original: Path) -> None:
    quantize_model(original, tmp_path / "packed")
    source = open_source(tmp_path / "packed", mapped=False)
    matrices = [name for name, shape in source.shapes.items() if len(shape) == 2]
    with (tmp_path / "packed" / FILE).open("r+b") as file:
        file.truncate(file.seek(0, 2) // 2)

    with pytest.raises(WeightsError, match=r"changed while it was read: load it again$"):
        list(map(source.packed, matrices))


def test_experts_and_hugging_face_folders_can_be_packed(tmp_path: Path) -> None:
    config = ModelConfig(
        dim=32, n_layers=1, head_dim=8, hidden_dim=48, n_heads=4, n_kv_heads=4, vocab_size=50, max_seq_len=64,
        moe=MoeConfig(4, 2),
    )  # fmt: skip
    huggingface_model(config, random_weights(config), "Mixtral").save_pretrained(tmp_path / "hf")
    quantize_model(tmp_path / "hf", tmp_path / "out")
    source = open_source(tmp_path / "out")
    assert source.config.moe == config.moe
    router = source.tensor("layers.0.feed_forward.gate.weight")
    assert torch.equal(router, open_source(tmp_path / "hf").tensor("layers.0.feed_forward.gate.weight").float())


def test_what_cannot_be_packed_is_refused_and_nothing_is_left(tmp_path: Path, original: Path) -> None:
    out = tmp_path / "out"
    quantize_model(original, out)
    with pytest.raises(CierzoError, match="exists: name another folder"):
        quantize_model(original, out)
    with pytest.raises(WeightsError, match="in few bits already"):
        quantize_model(out, tmp_path / "again")
    broken = random_weights(CONFIG)
    broken["layers.0.feed_forward.w2.weight"][3, 5] = torch.nan
    write_consolidated(tmp_path / "nan", CONFIG, broken)
    with pytest.raises(WeightsError, match=r"'layers.0.feed_forward.w2.weight' holds NaN or infinite numbers"):
        quantize_model(tmp_path / "nan", tmp_path / "never")
    broken["layers.0.feed_forward.w2.weight"][3, 5] = 1e30  # its scale does not fit float16
    write_consolidated(tmp_path / "huge", CONFIG, broken)
    with pytest.raises(WeightsError, match=r"'layers.0.feed_forward.w2.weight': a scale"):
        quantize_model(tmp_path / "huge", tmp_path / "never")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["huge", "nan", "out", "tiny-instruct"]


def rewritten(file: Path, change: dict[str, object]) -> None:
    """The same file with other metadata."""
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] |= change
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cierzo": "2"}, "not a packed model of version 1"),
        ({"config": "[["}, "metadata 'config' cannot be read"),
        ({"config": "[]"}, "metadata 'config' is no object"),
        ({"config": "{}"}, "of another version"),
        ({"config": CONFIG_TEXT.replace('"n_layers": 2', '"n_layers": 1000000000000')}, "'n_layers' is 1000000000000"),
        (
            {"config": CONFIG_TEXT.replace('"moe": null', '"moe": {"num_experts": "4", "num_experts_per_tok": 2}')},
            "'num_experts' must be a whole number",
        ),
        ({"config": CONFIG_TEXT.replace('"dim": 40', '"dim": 4611686018427387904')}, "'dim' is"),
        ({"shapes": '{"norm.weight": [0]}'}, "shape of tensor 'norm.weight'"),
        ({"shapes": '{"norm.weight": [41]}'}, r"tensor 'norm.weight' is \[40\] and declared \[41\]"),
        ({"shapes": '{"tok_embeddings.weight": [117, 40]}'}, r"'tok_embeddings.weight' is .* declared \[117, 40\]"),
        ({"shapes": '{"more.weight": [1]}'}, "no tensor 'more.weight'"),
        ({"shapes": "{}"}, "tensors of 0 layers, and the configuration says 2"),
    ],
)
def test_files_that_lie(tmp_path: Path, original: Path, change: dict[str, object], message: str) -> None:
    out = tmp_path / "out"
    quantize_model(original, out)
    rewritten(out / FILE, change)
    with pytest.raises(WeightsError, match=message):
        load_model(out, packed=True)


def test_a_matrix_in_floats_is_refused(tmp_path: Path, original: Path, weights: dict[str, torch.Tensor]) -> None:
    out = tmp_path / "out"
    quantize_model(original, out)
    shapes = {name: list(tensor.shape) for name, tensor in weights.items()}
    metadata = {"cierzo": "1", "config": CONFIG_TEXT, "shapes": json.dumps(shapes)}
    save_file(weights, out / FILE, metadata=metadata)
    with pytest.raises(WeightsError, match=r"tensor 'tok_embeddings.weight' is \[100, 40\] and declared \[100, 40\]"):
        load_model(out, packed=True)


def test_formats_that_cannot_be_together_are_refused(tmp_path: Path, original: Path) -> None:
    """Q4T's activations are rounded by longer spans, so matrices of one input have it together or not at all."""
    for format in ("q4t", "q8"):
        quantize_model(original, tmp_path / format, format=format)
    tensors = [load_file(tmp_path / format / FILE) for format in ("q4t", "q8")]
    with safe_open(tmp_path / "q8" / FILE, framework="pt") as file:
        metadata = file.metadata()
    name = "layers.1.attention.wk.weight"
    save_file(tensors[1] | {name: tensors[0][name]}, tmp_path / "q8" / FILE, metadata=metadata)
    with pytest.raises(WeightsError, match=r"layers\.1\.attention\.qkv is in Q4T and in another format"):
        load_model(tmp_path / "q8", packed=True)
    whole = {f"layers.1.attention.w{part}.weight" for part in "qkv"}
    save_file(tensors[1] | {name: tensors[0][name] for name in whole}, tmp_path / "q8" / FILE, metadata=metadata)
    assert load_model(tmp_path / "q8", packed=True).packed


def test_a_gguf_file_and_unknown_formats_are_refused(tmp_path: Path, original: Path) -> None:
    with pytest.raises(CierzoError, match="packed in q4t, q4, q8, not in 'q3'"):
        quantize_model(original, tmp_path / "out", format="q3")
    folder = tmp_path / "gguf"
    folder.mkdir()
    write_gguf(folder / "model.gguf", replace(CONFIG, sliding_window=None), random_weights(CONFIG))
    with pytest.raises(WeightsError, match="GGUF files are run as they are"):
        quantize_model(folder, tmp_path / "out")


def test_a_cut_file_is_refused(tmp_path: Path, original: Path) -> None:
    out = tmp_path / "out"
    quantize_model(original, out)
    data = (out / FILE).read_bytes()
    for length in (0, 7, 100, len(data) - 1):
        (out / FILE).write_bytes(data[:length])
        with pytest.raises(WeightsError, match="not a whole safetensors file"):
            load_model(out, packed=True)


def stopped_after(tensors: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> None:
    """The work, stopped as by Ctrl-C."""
    write = PackedWriter.write
    calls = 0

    def stops(self: PackedWriter, name: str, data: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls > tensors:
            raise KeyboardInterrupt
        write(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(PackedWriter, "write", stops)
        with pytest.raises(KeyboardInterrupt):
            work()


def test_work_goes_on_only_with_the_same_model(tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same shape, perhaps: base and instruct."""
    out = tmp_path / "packed"
    other = write_consolidated(tmp_path / "tiny-base", CONFIG, {n: 2 * t for n, t in random_weights(CONFIG).items()})
    stopped_after(5, monkeypatch, lambda: quantize_model(original, out))
    quantize_model(other, out)
    quantize_model(other, tmp_path / "alone")
    assert (out / FILE).read_bytes() == (tmp_path / "alone" / FILE).read_bytes()


def test_nothing_of_stopped_packing_is_in_an_export(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stopped_after(5, monkeypatch, lambda: quantize_model(original, out))
    export_huggingface(original, out)
    assert not (out / FILE).exists()
    assert load_model(out).norm.weight.any()


def test_a_line_of_the_journal_that_was_cut_off_is_written_again(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "packed"
    stopped_after(5, monkeypatch, lambda: quantize_model(original, out))
    journal = tmp_path / ".packed.partial" / "packed.journal"
    journal.write_text(journal.read_text()[:-3])
    stopped_after(2, monkeypatch, lambda: quantize_model(original, out))
    quantize_model(original, out)
    quantize_model(original, tmp_path / "alone")
    assert (out / FILE).read_bytes() == (tmp_path / "alone" / FILE).read_bytes()


def test_a_disk_without_room_is_told_before_the_work(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CierzoError, match="No space left on device: choose a folder with room"):
        quantize_model(original, tmp_path / "packed")
