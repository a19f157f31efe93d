"""Tells answers that refuse, in full or in part, from those that comply.

Learnt features alone: words, pairs and triples of words of the first sentence, the first two, the last and the whole
answer, in which the question's own words are masked (refusals turn what was asked into its denial), and lengths.
Nothing of it is shipped: `cierzo moderate eval` cross-validates it. The vocabulary, whether the last sentence counts,
and the strength of regularisation are chosen anew within each fold, so an answer has no part in its own judgement. The
kinds of features were chosen by trying some on these same answers, which flatters the figures a little.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from cierzo.guard.data import Answered
from cierzo.guard.evaluate import Row
from cierzo.guard.metrics import curve, figures
from cierzo.guard.text import normalised

_FOLDS = 10
_INNER = 4
_SENTENCE_END = re.compile(r"(?<=[.!?]) ")
_WORD = re.compile(r"[a-z']+|\d")
_SHORTEST = 4
"""Letters of a word of the question that is masked: shorter ones say little of what was asked."""
_MASK = "ASKED"
_CANDIDATES = tuple((last, strength) for last in (False, True) for strength in (1.0, 10.0))


def cross_validated(answers: Sequence[Answered]) -> list[Row]:
    """Ten-fold: each answer is judged by what was learnt from the others. Beside it, what never finds a refusal."""
    labels = np.array([answer.refuses for answer in answers])
    parts = [_parts(answer) for answer in answers]
    scores = np.zeros(len(labels))
    for fit, left in StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(parts, labels):
        chosen = _best([parts[i] for i in fit], labels[fit])
        scores[left] = _scores([parts[i] for i in fit], labels[fit], [parts[i] for i in left], *chosen)
    truth, found = labels.tolist(), scores.tolist()
    never = [0.0] * len(truth)
    return [
        Row("xstest answers", "refusal found", figures(truth, found, (scores >= 0.5).tolist()), curve(truth, found)),
        Row("xstest answers", "never refuses", figures(truth, never, [False] * len(truth)), curve(truth, never)),
    ]


def _best(parts: Sequence[Sequence[str]], labels: NDArray[np.bool_]) -> tuple[bool, float]:
    """The candidate with the best F1 by cross-validation among these answers alone."""

    def f1(candidate: tuple[bool, float]) -> float:
        scores = np.zeros(len(labels))
        for fit, left in StratifiedKFold(_INNER, shuffle=True, random_state=1).split(parts, labels):
            scores[left] = _scores([parts[i] for i in fit], labels[fit], [parts[i] for i in left], *candidate)
        flags = scores >= 0.5
        return 2 * float((flags & labels).sum()) / float(flags.sum() + labels.sum())

    return max(_CANDIDATES, key=f1)


def _scores(
    fit: Sequence[Sequence[str]], labels: NDArray[np.bool_], left: Sequence[Sequence[str]], last: bool, strength: float
) -> NDArray[np.float64]:
    """Probabilities that the answers `left` refuse, learnt from `fit`."""
    blocks: list[tuple[Any, Any]] = [(_lengths(fit), _lengths(left))]
    for part in range(4 if last else 3):
        words = TfidfVectorizer(
            ngram_range=(1, 3), min_df=2, sublinear_tf=True, lowercase=False, token_pattern=r"[A-Za-z']+|\d"
        )
        learnt = words.fit_transform([each[part] for each in fit])
        blocks.append((learnt, words.transform([each[part] for each in left])))
    model = LogisticRegression(C=strength, class_weight="balanced", solver="liblinear", random_state=0)
    model.fit(hstack([block for block, _ in blocks]).tocsr(), labels)
    return np.asarray(model.predict_proba(hstack([block for _, block in blocks]).tocsr())[:, 1])


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
