"""`cierzo moderate train`: the classifier from labelled texts, by scikit-learn's logistic regression.

Learnt from the training halves of OpenAI's moderation set and of Davidson's tweets (hate against neither; what is only
offensive is left out, since OpenAI's categories do not say what it is), beside what further sets (`further.py`) and
alt-profanity-check make of a text; and, on OpenAI's half and one's own texts, from what an encoder makes of them
(`encoder.py`). Every choice here was made by cross-validation within these halves: `docs/log.md`
has what else was tried.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags, hstack, vstack
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import normalize

from cierzo.guard import data, further
from cierzo.guard.calibrate import fitted, logistic
from cierzo.guard.classifier import ANY, BUCKETS, CATEGORIES, Classifier, Heads, combined, digest_of, features
from cierzo.guard.data import Labelled
from cierzo.guard.encoder import Encoder
from cierzo.guard.further import Labels
from cierzo.guard.metrics import auc
from cierzo.guard.prior import Prior
from cierzo.guard.text import SPAN, normalised, spans
from cierzo.progress import Report

Fit = Callable[[Any, NDArray[np.int64], NDArray[np.float64]], LogisticRegression]
"""Learns from rows of features, their labels and weights."""

_FEWEST = 10
"""Positive texts without which a category is not learnt."""
_STRENGTH, _HEADS_STRENGTH = 10.0, 0.003
"""Inverse regularisation of words' weights and of the encoder's states'."""
_OPINION = 0.1
"""Standard deviation of what the prior, or a kind of further sets, makes of texts: the smaller, the less it counts."""
_FEWEST_FURTHER = 50
"""Texts of a further set that have a label, and that lack it, without which nothing is learnt of the label."""
_RATES = (0.003, 0.01, 0.04, 0.1)
"""Parts of the harmless texts, for each of which the score that so many reach is told: policies' thresholds."""
_TWEET = 0.05
"""Weight of a tweet beside a text of the other sets: there are many, and they are of one kind."""
_FOLDS = 5


def counted(texts: Sequence[str]) -> csr_matrix:
    """Features of normalised texts, a sparse matrix [n, BUCKETS], before idf."""
    rows = [features(text) for text in texts]
    starts = np.cumsum([0, *(len(buckets) for buckets, _ in rows)])
    buckets = np.concatenate([buckets for buckets, _ in rows])
    values = np.concatenate([values for _, values in rows])
    return csr_matrix((values, buckets, starts), shape=(len(rows), BUCKETS))


def learnt_from(folder: Path, own: Sequence[Labelled]) -> tuple[list[Labelled], NDArray[np.float64]]:
    """Labelled texts and the weight of each."""
    whole = [item for item in data.openai_moderation(folder) if data.part_of(item.text) == "train"]
    tweets = []
    for item in data.davidson(folder):
        if data.part_of(item.text) == "train" and (item.harmful or not item.categories["offensive"]):
            labels = {"hate": 1} if item.harmful else dict.fromkeys(CATEGORIES, 0)
            tweets.append(Labelled(item.text, item.harmful, labels))
    weights = np.concatenate([np.ones(len(whole) + len(own)), np.full(len(tweets), _TWEET)])
    return [*whole, *own, *tweets], weights


def prior_of(texts: Sequence[str]) -> Prior:
    """alt-profanity-check's weights, the mean of its five models, so scaled that they vary over texts by `_OPINION`."""
    from profanity_check.profanity_check import model, vectorizer

    weights = np.mean([each.estimator.coef_[0] for each in model.calibrated_classifiers_], 0)
    spread = float(np.std(vectorizer.transform(texts) @ weights))
    return Prior.of(vectorizer.get_feature_names_out(), vectorizer.idf_, weights * (_OPINION / max(spread, 1e-6)))


def opinions(
    sets: Iterable[tuple[csr_matrix, Sequence[Labels]]], texts: csr_matrix
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the further sets say of each kind of label, as linear models that vary over `texts` by `_OPINION` around 0.

    Args:
        sets: features of each set's texts, weighted and normalised, and their labels.

    Returns:
        weights [kinds, BUCKETS] and offsets [kinds]; a kind's are the mean over the sets that have enough of it.
    """
    kinds = defaultdict(list)
    for matrix, labels in sets:
        for kind in sorted({name for each in labels for name in each}):
            has = np.array([each.get(kind, -1) for each in labels])
            if min((has == 1).sum(), (has == 0).sum()) >= _FEWEST_FURTHER:
                weights = _fit(matrix[has >= 0], has[has >= 0], np.ones((has >= 0).sum())).coef_[0]
                kinds[kind].append(weights / max(float(np.std(texts @ weights)), 1e-6))
    means = np.array([np.mean(kinds[kind], 0) for kind in sorted(kinds)]).reshape(-1, BUCKETS)
    values = texts @ means.T
    scale = _OPINION / np.maximum(values.std(0), 1e-6)
    return means * scale[:, None], -values.mean(0) * scale


@dataclass(frozen=True)
class Rows:
    """Texts as they are learnt from: whole and, where they are longer than a span, in the spans that are judged.

    Attributes:
        owner: of each row, which text it is of. The first rows are the whole texts.
        weight: a text's for the whole; its spans share as much again.
        judged: whether the guard would look at the row.
    """

    texts: list[str]
    owner: NDArray[np.int64]
    weight: NDArray[np.float64]
    judged: NDArray[np.bool_]

    @classmethod
    def of(cls, texts: Sequence[str], weights: NDArray[np.float64]) -> "Rows":
        parts = [(i, part, len(text)) for i, text in enumerate(texts) if len(text) > SPAN for part in spans(text)]
        owner = np.array([*range(len(texts)), *(i for i, _, _ in parts)])
        shares = 1 / np.maximum(np.bincount(owner) - 1, 1)
        long = np.bincount(owner) > 1
        weight = np.concatenate([weights, (weights * shares)[owner[len(texts) :]]])
        judged = np.concatenate([~long, np.ones(len(parts), bool)])
        return cls([*texts, *(part for _, part, _ in parts)], owner, weight, judged)

    def worst(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The highest value of each text's judged rows."""
        highest = np.full(self.owner.max() + 1, -np.inf)
        np.maximum.at(highest, self.owner[self.judged], values[self.judged])
        return highest


def trained(
    folder: Path, own: Sequence[Labelled], report: Report, encoder: Path | None = None
) -> tuple[Classifier, dict[str, str]]:
    """The classifier, and what is to be told about it.

    That is: the sources; AUC by cross-validation (texts of full weight); and the score of each category that a given
    part of the harmless texts reaches when they are left out of the training, from which policies take thresholds.

    Args:
        encoder: the file of an encoder whose states count too.
    """
    report(0, len(CATEGORIES) + 1)
    items, weights = learnt_from(folder, own)
    texts = [normalised(item.text) for item in items]
    full = weights == 1
    prior = prior_of([text for text, counts in zip(texts, full, strict=True) if counts])
    held_out = [normalised(item.text) for item in data.openai_moderation(folder) if data.part_of(item.text) == "test"]
    sets = further.found(folder, held_out)
    rows = Rows.of(texts, weights)
    counts = counted(rows.texts)
    counts_of = {name: counted([text for text, _ in of_set]) for name, of_set in sets.items()}
    everything = vstack([counts[: len(texts)], *counts_of.values()])
    rare = np.asarray((everything > 0).sum(0)).ravel()
    idf = (np.log((1 + everything.shape[0]) / (1 + rare)) + 1).astype(np.float16)

    def weighted(counted_texts: csr_matrix) -> csr_matrix:
        return normalize(counted_texts @ diags(idf.astype(np.float64)))

    labelled_sets = [(weighted(counts_of[name]), [each for _, each in of_set]) for name, of_set in sets.items()]
    words = weighted(counts)
    said, offsets = opinions(labelled_sets, words[: len(texts)][full])
    values = np.column_stack([words @ said.T + offsets, [prior.value(text) for text in rows.texts]])
    matrix = hstack([words, csr_matrix(values)]).tocsr()
    columns: dict[str, tuple[NDArray[np.float64], float]] = {}
    left_out = {}
    for number, name in enumerate((*CATEGORIES, ANY)):
        report(number, len(CATEGORIES) + 1)
        labels = _labels(items, name)
        if (labels[full] == 1).sum() >= _FEWEST:
            weight, offset, left_out[name] = _column(matrix, labels, rows, full, _fit)
            columns[name] = (weight, offset)
    names = tuple(columns)
    learnt = np.stack([weight for weight, _ in columns.values()])  # [C, BUCKETS + kinds + 1]
    opinion = learnt[:, BUCKETS:-1]
    dense = np.ascontiguousarray((learnt[:, :BUCKETS] + opinion @ said).T)
    scale = (np.abs(dense).max(0) / 127).astype(np.float32)
    quantised = np.round(dense / scale).astype(np.int8)
    bias = (np.array([bias for _, bias in columns.values()]) + opinion @ offsets).astype(np.float32)
    gain = learnt[:, -1].astype(np.float32)
    kept = [item for item, counts in zip(items, full, strict=True) if counts]
    of_kept = Rows.of([text for text, counts in zip(texts, full, strict=True) if counts], weights[full])
    by_words = {name: logits[full[rows.owner]] for name, logits in left_out.items()}
    about = {
        "learnt_from": f"OpenAI's set and Davidson's tweets (MIT): {len(items) - len(own)} texts; own: {len(own)}; "
        + "".join(f"{s.repository} ({s.licence}): {len(sets[s.name])}; " for s in further.SETS if s.name in sets)
        + "weights of words: alt-profanity-check (MIT)",
        **_measured(kept, of_kept, by_words),
    }
    heads = None
    if encoder is not None:
        heads, read = _heads(encoder, kept, of_kept, by_words)
        about |= {f"{name}_by_words": value for name, value in about.items() if name != "learnt_from"}
        about |= _measured(kept, of_kept, read)
    return Classifier(names, quantised, scale, idf, bias, prior, gain, heads), about


def _heads(
    file: Path, kept: Sequence[Labelled], rows: Rows, by_words: dict[str, NDArray[np.float64]]
) -> tuple[Heads, dict[str, NDArray[np.float64]]]:
    """What the encoder's states count beside the words, and the logits of rows by both when left out."""
    digest, encoder = digest_of(file), Encoder.load(file)
    states = np.stack([encoder.read(text) for text in rows.texts])
    mean, spread = states.mean(0), np.maximum(states.std(0), 1e-6)
    everything = np.ones(len(kept), bool)
    weights, words, bias, left_out = [], [], [], {}
    for name, logits in by_words.items():
        labels = _labels(kept, name)
        weight, offset, own = _column((states - mean) / spread, labels, rows, everything, _fit_states)
        known = labels >= 0
        platt = fitted(rows.worst(logits + own)[known].tolist(), (labels[known] == 1).tolist())
        left_out[name] = platt.slope * (logits + own) + platt.intercept
        weights.append(platt.slope * weight / spread)
        words.append(platt.slope)
        bias.append(platt.slope * (offset - float(weight @ (mean / spread))) + platt.intercept)
    columns = np.ascontiguousarray(np.stack(weights, 1).astype(np.float16))
    return Heads(file, digest, columns, np.array(words, np.float32), np.array(bias, np.float32)), left_out


def _measured(kept: Sequence[Labelled], rows: Rows, left_out: dict[str, NDArray[np.float64]]) -> dict[str, str]:
    """AUC and thresholds on texts that were left out, by the worst of their spans."""
    parts = {name: np.array([logistic(x) for x in logits]) for name, logits in left_out.items()}
    each = [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
    parts[ANY] = np.array([combined(row) for row in each])
    scores = {name: rows.worst(values) for name, values in parts.items()}
    harmless = np.array([not item.harmful for item in kept])
    areas, limits = {}, {}
    for name, score in scores.items():
        labels = _labels(kept, name)
        areas[name] = round(auc(labels[labels >= 0] == 1, score[labels >= 0]), 4)
        limits[name] = {f"{rate:g}": round(float(np.quantile(score[harmless], 1 - rate)), 3) for rate in _RATES}
    return {"cross_validated_auc": json.dumps(areas), "reached_by_harmless": json.dumps(limits)}


def _labels(items: Sequence[Labelled], name: str) -> NDArray[np.int64]:
    """1 and 0, or -1 where it is not known whether the category applies."""
    return np.array([item.harmful if name == ANY else item.categories.get(name, -1) for item in items], int)


def _column(
    matrix: Any, labels: NDArray[np.int64], rows: Rows, full: NDArray[np.bool_], fit: Fit
) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    """Weights and bias of a category, calibrated on texts left out (Platt), and the logits of rows when left out.

    Texts whose label is unknown (-1) are never learnt from. `labels` and `full` are the texts'.
    """

    def learn(texts: NDArray[np.int64]) -> LogisticRegression:
        of_texts = np.isin(rows.owner, texts)
        return fit(matrix[of_texts], labels[rows.owner[of_texts]], rows.weight[of_texts])

    known = np.flatnonzero(labels >= 0)
    model = learn(known)
    held_out = np.asarray(model.decision_function(matrix))
    for seen, left in StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(known, labels[known]):
        of_left = np.isin(rows.owner, known[left])
        held_out[of_left] = learn(known[seen]).decision_function(matrix[of_left])
    counts = (labels >= 0) & full
    platt = fitted(rows.worst(held_out)[counts].tolist(), (labels[counts] == 1).tolist())
    bias = platt.slope * float(model.intercept_[0]) + platt.intercept
    return platt.slope * model.coef_[0], bias, platt.slope * held_out + platt.intercept


def _fit(matrix: Any, labels: NDArray[np.int64], weights: NDArray[np.float64]) -> LogisticRegression:
    model = LogisticRegression(C=_STRENGTH, class_weight="balanced", solver="liblinear", random_state=0)
    return model.fit(matrix, labels, sample_weight=weights)


def _fit_states(states: Any, labels: NDArray[np.int64], weights: NDArray[np.float64]) -> LogisticRegression:
    model = LogisticRegression(C=_HEADS_STRENGTH, class_weight="balanced", max_iter=500)
    return model.fit(states, labels, sample_weight=weights)
