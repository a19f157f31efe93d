"""What a larger model of words thinks of a text."""

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from cierzo.guard.prior import Prior
from cierzo.guard.train import prior_of

TEXTS = ["the cat sat down", "the dog sat on the cat", "a dog, a dog, a fish", "nothing of these"]


def test_it_is_the_product_that_scikit_learn_computes() -> None:
    vectorizer = TfidfVectorizer().fit(TEXTS)
    words = vectorizer.get_feature_names_out()
    weights = np.linspace(-1, 2, len(words))
    prior = Prior.of(words, vectorizer.idf_, weights)
    expected = vectorizer.transform([*TEXTS, "dog dog unheard cat"]) @ weights
    found = [prior.value(text) for text in [*TEXTS, "dog dog unheard cat"]]
    assert np.allclose(found, expected, atol=2e-3)
    assert prior.value("unheard of x") != prior.value("unheard x")
    assert prior.value("unheard x") == prior.value("") == 0


def test_a_word_after_the_last_hash_is_unknown() -> None:
    prior = Prior(np.array([1], np.uint32), np.ones(1, np.float16), np.ones(1, np.float16))
    assert prior.value("some words") == 0


def test_the_teacher_is_copied_whole() -> None:
    from profanity_check.profanity_check import model, vectorizer

    texts = ["you are a stupid idiot", "what a lovely day in the park", "go to hell, you bastard", "my dog likes fish"]
    prior = prior_of(texts)
    weights = np.mean([each.estimator.coef_[0] for each in model.calibrated_classifiers_], 0)
    values = vectorizer.transform(texts) @ weights
    assert np.allclose([prior.value(text) for text in texts], values * 0.1 / values.std(), atol=2e-3)
    assert prior.value(texts[0]) > prior.value(texts[1])
