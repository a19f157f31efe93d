"""`cierzo moderate train`: the classifier from labelled texts, by scikit-learn's logistic regression.

Learnt from the training halves of OpenAI's moderation set and of Davidson's tweets (hate against neither; what is only
offensive is left out, since OpenAI's categories do not say what it is), beside alt-profanity-check's weights of words.
Every choice here was made by cross-validation within these halves: `docs/log.md` has what else was tried.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags, hstack
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import normalize

from cierzo.guard import data
from cierzo.guard.calibrate import fitted, logistic
from cierzo.guard.classifier import ANY, BUCKETS, CATEGORIES, Classifier, combined, features
from cierzo.guard.data import Labelled
from cierzo.guard.metrics import auc
from cierzo.guard.prior import Prior
from cierzo.guard.text import normalised
from cierzo.progress import Report

_FEWEST = 10
"""Positive texts without which a category is not learnt."""
_STRENGTH = 10.0
_PRIOR = 0.1
"""Standard deviation of the prior's value: the smaller, the less it counts."""
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
    """alt-profanity-check's weights, the mean of its five models, so scaled that they vary over texts by `_PRIOR`."""
    from profanity_check.profanity_check import model, vectorizer

    weights = np.mean([each.estimator.coef_[0] for each in model.calibrated_classifiers_], 0)
    spread = float(np.std(vectorizer.transform(texts) @ weights))
    return Prior.of(vectorizer.get_feature_names_out(), vectorizer.idf_, weights * (_PRIOR / max(spread, 1e-6)))


def trained(folder: Path, own: Sequence[Labelled], report: Report) -> tuple[Classifier, dict[str, str]]:
    """The classifier, and what is to be told about it.

    That is: the sources; AUC by cross-validation (texts of full weight); and the score of each category that a given
    part of the harmless texts reaches when they are left out of the training, from which policies take thresholds.
    """
    items, weights = learnt_from(folder, own)
    texts = [normalised(item.text) for item in items]
    full = weights == 1
    prior = prior_of([text for text, counts in zip(texts, full, strict=True) if counts])
    counts = counted(texts)
    rare = np.asarray((counts > 0).sum(0)).ravel()
    idf = (np.log((1 + len(items)) / (1 + rare)) + 1).astype(np.float16)
    values = csr_matrix([[prior.value(text)] for text in texts])
    matrix = hstack([normalize(counts @ diags(idf.astype(np.float64))), values]).tocsr()
    columns: dict[str, tuple[NDArray[np.float64], float]] = {}
    left_out = {}
    for number, name in enumerate((*CATEGORIES, ANY)):
        report(number, len(CATEGORIES) + 1)
        labels = np.array([item.harmful if name == ANY else item.categories.get(name, -1) for item in items], int)
        if (labels[full] == 1).sum() >= _FEWEST:
            weight, offset, left_out[name] = _column(matrix, labels, weights)
            columns[name] = (weight, offset)
    names = tuple(columns)
    dense = np.stack([weight[:-1] for weight, _ in columns.values()], 1)
    scale = (np.abs(dense).max(0) / 127).astype(np.float32)
    quantised = np.round(dense / scale).astype(np.int8)
    bias = np.array([bias for _, bias in columns.values()], np.float32)
    gain = np.array([weight[-1] for weight, _ in columns.values()], np.float32)
    about = {
        "learnt_from": f"OpenAI's set and Davidson's tweets (MIT): {len(items) - len(own)} texts; own: {len(own)}; "
        "weights of words: alt-profanity-check (MIT)",
        **_measured(items, full, left_out),
    }
    return Classifier(names, quantised, scale, idf, bias, prior, gain), about


def _measured(
    items: Sequence[Labelled], full: NDArray[np.bool_], left_out: dict[str, NDArray[np.float64]]
) -> dict[str, str]:
    """AUC and thresholds on texts that were left out."""
    scores = {name: np.array([logistic(x) for x in logits[full]]) for name, logits in left_out.items()}
    rows = [dict(zip(scores, row, strict=True)) for row in zip(*scores.values(), strict=True)]
    scores[ANY] = np.array([combined(row) for row in rows])
    kept = [item for item, counts in zip(items, full, strict=True) if counts]
    harmless = np.array([not item.harmful for item in kept])
    areas, limits = {}, {}
    for name, score in scores.items():
        labels = np.array([int(i.harmful) if name == ANY else i.categories.get(name, -1) for i in kept])
        areas[name] = round(auc(labels[labels >= 0] == 1, score[labels >= 0]), 4)
        limits[name] = {f"{rate:g}": round(float(np.quantile(score[harmless], 1 - rate)), 3) for rate in _RATES}
    return {"cross_validated_auc": json.dumps(areas), "reached_by_harmless": json.dumps(limits)}


def _column(
    matrix: Any, labels: NDArray[np.int64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    """Weights and bias of a category, calibrated on texts left out (Platt), and the logits of texts when left out.

    Texts whose label is unknown (-1) are never learnt from.
    """
    known = np.flatnonzero(labels >= 0)
    model = _fit(matrix[known], labels[known], weights[known])
    held_out = np.asarray(model.decision_function(matrix))
    for fit, left in StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(known, labels[known]):
        rest = known[fit]
        held_out[known[left]] = _fit(matrix[rest], labels[rest], weights[rest]).decision_function(matrix[known[left]])
    full = (labels >= 0) & (weights == 1)
    platt = fitted(held_out[full], (labels[full] == 1).tolist())
    bias = platt.slope * float(model.intercept_[0]) + platt.intercept
    return platt.slope * model.coef_[0], bias, platt.slope * held_out + platt.intercept


def _fit(matrix: Any, labels: NDArray[np.int64], weights: NDArray[np.float64]) -> LogisticRegression:
    model = LogisticRegression(C=_STRENGTH, class_weight="balanced", solver="liblinear", random_state=0)
    return model.fit(matrix, labels, sample_weight=weights)
