"""Tells answers that refuse, in full or in part, from those that comply.

Learnt features alone: words, pairs and triples of words of the first sentence, the first two, the last and the whole
answer, in which the question's own words are masked (refusals turn what was asked into its denial), and lengths.
Beside them, where a model reads the answers, what its middle layers make of them beyond the questions (`states.py`):
the mean of linear models of each layer, and of that and the words. Nothing of it is shipped: `cierzo moderate eval`
cross-validates it, so an answer has no part in its own judgement. Nor is anything chosen by the answers: models with
and without the last sentence, of two strengths of regularisation, count alike. But the kinds of features, and layers,
were found by trying some on these same answers, which flatters the figures a little.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.preprocessing import StandardScaler

from cierzo.guard.data import Answered
from cierzo.guard.evaluate import Row
from cierzo.guard.metrics import curve, figures
from cierzo.guard.text import normalised

_FOLDS = 10
_SHUFFLES = 10
_SENTENCE_END = re.compile(r"(?<=[.!?]) ")
_WORD = re.compile(r"[a-z']+|\d")
_SHORTEST = 4
"""Letters of a word of the question that is masked: shorter ones say little of what was asked."""
_MASK = "ASKED"
_STRENGTHS = (1.0, 10.0)
_STATES_STRENGTHS = (0.01, 0.1)
"""Inverse regularisation of a layer's linear models: they have more inputs than there are answers."""


def cross_validated(
    answers: Sequence[Answered], states: NDArray[np.float32] | None = None, reader: str = ""
) -> list[Row]:
    """Ten-fold: each answer is judged by what was learnt from others. Beside it, what never finds a refusal.

    An answer's logit is the mean over ten shuffles, since which others it meets moves single ones.

    Args:
        states: of each answer [n, layers, dim], for a further row that judges by them and by the words together ...
        reader: ... and the name of the model that they are of.
    """
    labels = np.array([answer.refuses for answer in answers])
    parts = [_parts(answer) for answer in answers]
    words, read = np.zeros(len(labels)), np.zeros(len(labels))
    for fit, left in RepeatedStratifiedKFold(n_splits=_FOLDS, n_repeats=_SHUFFLES, random_state=0).split(parts, labels):
        words[left] += _by_words([parts[i] for i in fit], labels[fit], [parts[i] for i in left])
        if states is not None:
            read[left] += _by_states(states[fit], labels[fit], states[left])
    found = {"refusal found": words, "never refuses": np.full(len(labels), -1.0)}
    if states is not None:
        found[f"with {reader}"] = (words + read) / 2
    truth = labels.tolist()
    return [
        Row("xstest answers", name, figures(truth, s.tolist(), (s >= 0).tolist()), curve(truth, s.tolist()))
        for name, s in found.items()
    ]


def _by_states(fit: NDArray[np.float32], labels: NDArray[np.bool_], left: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits that the answers `left` [n, layers, dim] refuse, the mean over layers, learnt from `fit`."""
    logits = []
    for layer in range(fit.shape[1]):
        scale = StandardScaler().fit(fit[:, layer])
        inputs, judged = scale.transform(fit[:, layer]), scale.transform(left[:, layer])
        for strength in _STATES_STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=300).fit(inputs, labels)
            logits.append(model.decision_function(judged))
    return np.asarray(np.mean(logits, 0))


def _by_words(
    fit: Sequence[Sequence[str]], labels: NDArray[np.bool_], left: Sequence[Sequence[str]]
) -> NDArray[np.float64]:
    """Logits that the answers `left` refuse, the mean over models, learnt from `fit`."""
    blocks: list[tuple[Any, Any]] = [(_lengths(fit), _lengths(left))]
    logits = []
    for part in range(4):
        words = TfidfVectorizer(
            ngram_range=(1, 3), min_df=2, sublinear_tf=True, lowercase=False, token_pattern=r"[A-Za-z']+|\d"
        )
        learnt = words.fit_transform([each[part] for each in fit])
        blocks.append((learnt, words.transform([each[part] for each in left])))
        if part >= 2:  # without the last sentence, and with it
            inputs, judged = (hstack(side).tocsr() for side in zip(*blocks, strict=True))
            for strength in _STRENGTHS:
                model = LogisticRegression(C=strength, class_weight="balanced", solver="liblinear", random_state=0)
                logits.append(model.fit(inputs, labels).decision_function(judged))
    return np.asarray(np.mean(logits, 0))


def _parts(answered: Answered) -> tuple[str, str, str, str]:
    """The first sentence, the first two and the whole answer, masked, and the last sentence as it is."""
    text = normalised(answered.answer)
    asked = {word for word in _WORD.findall(normalised(answered.question)) if len(word) >= _SHORTEST}
    sentences = _SENTENCE_END.split(text)

    def masked(part: str) -> str:
        return " ".join(_MASK if word in asked else word for word in _WORD.findall(part))

    return masked(sentences[0]), masked(" ".join(sentences[:2])), masked(text), sentences[-1]


def _lengths(parts: Sequence[Sequence[str]]) -> Any:
    """The answer's length and the part of its first sentence that repeats the question, [n, 2]."""
    rows = []
    for first, _, whole, _ in parts:
        words = first.split()
        rows.append([np.log(len(whole) + 1) / 8, words.count(_MASK) / max(1, len(words))])
    return csr_matrix(np.array(rows))
