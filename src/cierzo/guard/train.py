"""`cierzo moderate train`: the classifier from labelled texts, by scikit-learn's logistic regression.

Learnt from the training halves of OpenAI's moderation set and of Davidson's tweets (hate against neither; what is only
offensive is left out, since OpenAI's categories do not say what it is). Every choice here was made by cross-validation
within these halves: `docs/log.md` has what else was tried.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import normalize

from cierzo.guard import data
from cierzo.guard.calibrate import fitted
from cierzo.guard.classifier import ANY, BUCKETS, CATEGORIES, Classifier, features
from cierzo.guard.data import Labelled
from cierzo.guard.metrics import auc
from cierzo.guard.text import normalised
from cierzo.progress import Report

_FEWEST = 10
"""Positive texts without which a category is not learnt."""
_STRENGTH = 100.0
_TWEET = 0.05
"""Weight of a tweet beside a text of the other sets: there are many, and they are of one kind."""
_FOLDS = 5


def counted(texts: Sequence[str]) -> csr_matrix:
    """Features of texts, a sparse matrix [n, BUCKETS], before idf."""
    rows = [features(normalised(text)) for text in texts]
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


def trained(folder: Path, own: Sequence[Labelled], report: Report) -> tuple[Classifier, dict[str, str]]:
    """The classifier, and what is to be told about it: sources, and AUC by cross-validation (texts of full weight)."""
    items, weights = learnt_from(folder, own)
    counts = counted([item.text for item in items])
    rare = np.asarray((counts > 0).sum(0)).ravel()
    idf = (np.log((1 + len(items)) / (1 + rare)) + 1).astype(np.float16)
    matrix = normalize(counts @ diags(idf.astype(np.float64)))
    columns: dict[str, tuple[NDArray[np.float64], float]] = {}
    measured = {}
    for number, name in enumerate((*CATEGORIES, ANY)):
        report(number, len(CATEGORIES) + 1)
        labels = np.array([item.harmful if name == ANY else item.categories.get(name, -1) for item in items], int)
        if (labels[weights == 1] == 1).sum() < _FEWEST:
            continue
        known = labels >= 0
        weight, bias, measured[name] = _column(matrix[known], labels[known], weights[known])
        columns[name] = (weight, bias)
    names = tuple(columns)
    dense = np.stack([weight for weight, _ in columns.values()], 1)
    scale = (np.abs(dense).max(0) / 127).astype(np.float32)
    quantised = np.round(dense / scale).astype(np.int8)
    bias_ = np.array([bias for _, bias in columns.values()], np.float32)
    about = {
        "learnt_from": f"OpenAI's set and Davidson's tweets (MIT): {len(items) - len(own)} texts; own: {len(own)}",
        "cross_validated_auc": json.dumps({name: round(value, 4) for name, value in measured.items()}),
    }
    return Classifier(names, quantised, scale, idf, bias_), about


def _column(
    matrix: Any, labels: NDArray[np.int64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float, float]:
    """Weights and bias of a category, its probabilities calibrated on texts left out (Platt), and its AUC on them."""
    held_out = np.zeros(len(labels))
    for fit, left in StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(matrix, labels):
        held_out[left] = _fit(matrix[fit], labels[fit], weights[fit]).decision_function(matrix[left])
    full = weights == 1
    platt = fitted(held_out[full], (labels[full] == 1).tolist())
    model = _fit(matrix, labels, weights)
    bias = platt.slope * float(model.intercept_[0]) + platt.intercept
    return platt.slope * model.coef_[0], bias, auc(labels[full] == 1, held_out[full])


def _fit(matrix: Any, labels: NDArray[np.int64], weights: NDArray[np.float64]) -> LogisticRegression:
    model = LogisticRegression(C=_STRENGTH, class_weight="balanced", solver="liblinear", random_state=0)
    return model.fit(matrix, labels, sample_weight=weights)
