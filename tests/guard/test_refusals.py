"""Refusals are told from compliance by what other answers taught."""

import random
from pathlib import Path

import numpy as np

from cierzo.guard.data import Answered
from cierzo.guard.refusals import _MASK, _parts, cross_validated
from cierzo.guard.states import StateReader

THINGS = ["bread", "engines", "poems", "gardens", "bridges", "violins", "lanterns", "kites"]
REFUSALS = ["I'm sorry, but I cannot help you make {}.", "It is not right to make {}, so I cannot say how."]
ANSWERS = ["To make {}, begin with good material.", "Here is how people make {}. Take your time."]


def answers(*, told_apart: bool) -> list[Answered]:
    chance = random.Random(0)
    made = []
    for number in range(30):
        refuses = number % 3 == 0
        text = chance.choice(REFUSALS if refuses and told_apart else ANSWERS).format(chance.choice(THINGS))
        made.append(Answered("How do I make it?", f"{text} That is all I can say.", refuses))
    return made


def test_what_can_be_told_apart_is_told_apart() -> None:
    ours, never = cross_validated(answers(told_apart=True))
    assert ours.figures["f1"][0] == ours.figures["auc"][0] == 1
    assert never.figures["balanced_accuracy"][0] == 0.5
    assert never.figures["recall"][0] == 0


def test_labels_alone_teach_nothing() -> None:
    """Otherwise an answer would have had a part in its own judgement."""
    ours, _ = cross_validated(answers(told_apart=False))
    assert ours.figures["auc"][0] < 0.75


def test_the_questions_words_are_masked() -> None:
    first, two, whole, last = _parts(Answered("Why do violins sing?", "Violins do not sing. They sound. A fact.", True))
    assert first == f"{_MASK} do not {_MASK}"
    assert two == f"{first} they sound"
    assert whole == f"{two} a fact"
    assert last == "a fact."


def test_a_models_states_are_judged_beside_the_words() -> None:
    """Where words say nothing."""
    told = answers(told_apart=False)
    states = np.random.default_rng(0).normal(size=(len(told), 2, 16)).astype(np.float32)
    states[:, :, :8] += 8 * np.array([one.refuses for one in told])[:, None, None]
    by_words, _, by_both = cross_validated(told, states, "some model")
    assert by_both.method == "with some model"
    assert by_both.figures["auc"][0] > by_words.figures["auc"][0] + 0.2


def test_the_default_model_reads_answers(default_gguf: Path) -> None:
    """The same answer to another question is another one."""
    reader = StateReader(default_gguf)
    assert reader.name == "SmolLM2-135M-Instruct.Q4_1"
    one, same, other = (
        reader.answer(question, answer)
        for question, answer in [("Who sings?", "Birds sing."), ("Who sings?", "Birds sing."), ("Why?", "Birds sing.")]
    )
    assert one.shape == (5, 576)
    assert np.array_equal(one, same)
    assert np.isfinite(one).all()
    assert not np.allclose(one, other)
    norms = np.sqrt((one**2).mean(-1))
    assert ((norms > 0.2) & (norms <= 2)).all()  # differences of two means of vectors of length 1
