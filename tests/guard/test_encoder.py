"""The encoder: the states of a published implementation, its file, and what reading adds to the words."""

import asyncio
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cierzo import ops
from cierzo.errors import CierzoError
from cierzo.guard import Guard, Verdict, train_encoder
from cierzo.guard.classifier import ANY, NEVER, SHIPPED_ENCODER, Classifier, shipped
from cierzo.guard.encoder import LONGEST, READ, Encoder
from cierzo.guard.train_encoder import base_weights
from support.guards import WordClassifier, policy

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghij",
    *(f"##{c}" for c in "abcdefghij"),
    "cab",
    ",",
    "!",
]
WIDTH, HIDDEN, LAYERS = 96, 128, 5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT of random weights, as transformers writes it."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=len(PIECES), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=12,
        intermediate_size=HIDDEN, max_position_embeddings=300, layer_norm_eps=1e-12,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return folder


def _encoder(checkpoint: Path) -> Encoder:
    return Encoder(*base_weights(checkpoint))


def test_states_are_those_of_transformers(checkpoint: Path) -> None:
    from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
    from transformers import BertModel

    encoder = _encoder(checkpoint)
    model = BertModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()
    tokenizer = BertWordPieceTokenizer(str(checkpoint / "vocab.txt"))
    tokenizer.enable_truncation(LONGEST)
    texts = ["cab, bad!", "a", "jib " * 400, "", "Fée xyz ,!"]
    for text in texts:
        ids = encoder.encode(text)
        assert ids == tokenizer.encode(text).ids
        with torch.inference_mode():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-READ:]
        expected = torch.cat([state[0].mean(0) for state in states]).numpy()
        np.testing.assert_allclose(encoder.read(text), expected, atol=2e-5)


def test_texts_of_a_batch_do_not_see_its_padding(checkpoint: Path) -> None:
    encoder = _encoder(checkpoint)
    rows = [encoder.encode("cab bad"), encoder.encode("a")]
    padded = torch.tensor([row + [0] * (len(rows[0]) - len(row)) for row in rows])
    there = torch.tensor([[1.0] * len(row) + [0.0] * (len(rows[0]) - len(row)) for row in rows])
    with torch.inference_mode():
        together = encoder.states(padded, there)[-1][1, : len(rows[1])]
        alone = encoder.states(torch.tensor(rows[1:]), None)[-1][0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_its_file_keeps_it_in_4_bits(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = _encoder(checkpoint)
    encoder.save(tmp_path / "encoder.safetensors", {"learnt_from": "a test"})
    assert [each.name for each in tmp_path.iterdir()] == ["encoder.safetensors"]
    read = Encoder.load(tmp_path / "encoder.safetensors")
    one, two = encoder.read("cab bad"), read.read("cab bad")
    assert np.corrcoef(one, two)[0, 1] > 0.9
    without_kernels = ops.Machine(**{**vars(ops.machine()), "kernels": None})
    monkeypatch.setattr(ops, "machine", lambda: without_kernels)
    plain = Encoder.load(tmp_path / "encoder.safetensors")
    assert isinstance(plain.weights["0.qkv"], torch.Tensor)
    assert np.corrcoef(plain.read("cab bad"), two)[0, 1] > 0.999  # activations in float32, not 8 bits


def test_what_is_no_encoder_is_told(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CierzoError, match="no encoder"):
        Encoder.load(tmp_path / "none")
    for shapes in ("{}", "[]", '{"words": 2}', "{"):
        save_file({"words": torch.zeros(2, 2)}, tmp_path / "other", {"shapes": shapes, "vocabulary": "a"})
        with pytest.raises(CierzoError, match="no encoder"):
            Encoder.load(tmp_path / "other")
    with pytest.raises(CierzoError, match="no MiniLM checkpoint"):
        base_weights(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\n")
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CierzoError, match="no MiniLM checkpoint"):
        base_weights(tmp_path)


def test_the_shipped_classifier_reads_with_the_shipped_encoder(tmp_path: Path) -> None:
    text = "those people should be driven out of their homes and left in the cold"
    by_words, read = shipped().scores(text, NEVER), shipped().scores(text)
    assert by_words[ANY] != read[ANY]
    assert shipped().scores(text, by_words[ANY] + 0.01) == by_words
    assert shipped().scores(text, by_words[ANY] - 0.01) == read
    assert SHIPPED_ENCODER.stat().st_size < 2**24
    shipped().save(tmp_path / "weights.safetensors", {})
    (tmp_path / SHIPPED_ENCODER.name).write_bytes(SHIPPED_ENCODER.read_bytes()[:-1] + b"?")
    other = Classifier.load(tmp_path / "weights.safetensors")
    assert other.scores(text, NEVER) == by_words
    with pytest.raises(CierzoError, match="not the encoder"):
        other.scores(text)


def test_tuning_learns_from_every_sets_labels(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invented ones: `cab` is hateful, and of it only what names `j` is a threat."""
    for name, value in {"_EPOCHS": 12, "_WARM_UP": 3, "_TEXTS": 16, "_RATE": 1e-3, "_HEADS_RATE": 1e-2}.items():
        monkeypatch.setattr(train_encoder, name, value)
    for name in ("openai_moderation", "davidson", "further/hatecheck-data"):
        (tmp_path / name).mkdir(parents=True)
    with gzip.open(tmp_path / "openai_moderation/samples-1680.jsonl.gz", "wt") as lines:
        lines.write(json.dumps({"prompt": "a held-out cab", "H": 1}) + "\n")
    (tmp_path / "davidson/labeled_data.csv").write_text("tweet,class\n" + "".join(f"{n} j,{n % 3}\n" for n in range(9)))
    rows = ["functionality,test_case,label_gold", "slur_h,a held-out cab,hateful"]
    rows += [f"{'threat_dir_h' if n % 2 else 'slur_h'},cab {n} {'j' if n % 2 else 'f'},hateful" for n in range(120)]
    rows += [f"ident,a fig {n} {'j' if n % 2 else 'f'},non-hateful" for n in range(60)]
    (tmp_path / "further/hatecheck-data/test_suite_cases.csv").write_text("\n".join(rows))
    steps: list[int] = []
    encoder, about = train_encoder.tuned(tmp_path, checkpoint, lambda done, total: steps.append(total - done))
    assert steps == list(range(len(steps), 0, -1))
    assert "paul-rottger/hatecheck-data (CC BY 4.0): 180;" in about["learnt_from"], "a held-out text was learnt from"
    assert float(about["loss"]) < 0.35  # of 0.69 for who knows nothing
    assert (encoder.weights["words"] == base_weights(checkpoint)[0]["words"]).all()
    shutil.rmtree(tmp_path / "further")
    with pytest.raises(CierzoError, match="no further sets"):
        train_encoder.tuned(tmp_path, checkpoint, lambda done, total: None)


def test_of_a_long_text_the_worst_parts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, seen = Classifier.load(), []
    assert classifier.heads is not None
    real = type(classifier.heads).logits

    def logits(heads: Any, part: str, by_words: Any) -> Any:
        seen.append(part)
        return real(heads, part, by_words)

    monkeypatch.setattr(type(classifier.heads), "logits", logits)
    threat = "i will kill you all, you filthy animals. " * 15
    scores = classifier.scores("We walked along the river and talked of the weather. " * 600 + threat)
    assert len(seen) == 32
    assert any("filthy" in part for part in seen)
    assert scores[ANY] > 0.9


def test_a_guard_reads_what_the_words_leave_in_doubt() -> None:
    asked: list[tuple[str, float]] = []

    class Reading(WordClassifier):
        def __init__(self) -> None:
            super().__init__()
            self.heads: Any = object()

        def scores(self, text: str, reads: float = 0.0) -> dict[str, float]:
            asked.append((text, reads))
            found = super().scores(text)
            return found | {ANY: 0.3 if "murky" in text else found[ANY]} | ({"hate": 0.9} if reads == 0.2 else {})

    guard = Guard(policy(reads={"input": 0.2, "output": 1.0}), classifier=Reading())

    def judge(text: str) -> Verdict:
        return asyncio.run(guard.judge([text], "input"))

    assert judge("fine").action == "allow"
    assert asked == [("fine", NEVER)]
    assert judge("a murky text").action == "refuse"
    assert asked[1:] == [("a murky text", NEVER), ("a murky text", 0.2)]
    assert asyncio.run(guard.judge(["a murky text"], "output")).action == "allow"
