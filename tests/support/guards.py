"""A classifier of words and a scripted judge, so that tests choose what is found."""

from collections.abc import Sequence
from typing import Any

from cierzo.guard.classifier import ANY, CATEGORIES, Classifier
from cierzo.guard.judge import Opinion
from cierzo.guard.policy import Policy
from cierzo.guard.text import views

WORDS = {"vile": ("hate", 0.95), "murky": ("hate", 0.6), "gory": ("violence", 0.95), "rude": ("harassment", 0.95)}


class WordClassifier(Classifier):
    """Scores the words of `WORDS`, through the same views as the real one; raises at `crash`."""

    def __init__(self) -> None:
        self.categories, self.heads = CATEGORIES, None

    def scores(self, text: str, reads: float = 0.0) -> dict[str, float]:
        found = dict.fromkeys((*CATEGORIES, ANY), 0.0)
        for view in views(text):
            if "crash" in view:
                raise RuntimeError("the classifier broke")
            for word, (category, score) in WORDS.items():
                if word in view.split() or f"{word}." in view.split():
                    found[category] = max(found[category], score)
        return found


class ScriptedJudge:
    """Answers with the next of the given probabilities; raises where one is an error."""

    def __init__(self, *answers: float | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[list[int]] = []

    async def __call__(self, answer: Sequence[int]) -> Opinion:
        self.asked.append(list(answer))
        said = self.answers.pop(0)
        if isinstance(said, Exception):
            raise said
        return Opinion(said, "breaking the law")


def policy(**changes: Any) -> Policy:
    """Refuses hate, warns of harassment, logs violence."""
    values: dict[str, Any] = {
        "name": "test",
        "description": "A test's.",
        "mode": "enforce",
        "on_error": "allow",
        "refusal": "No.",
        "categories": {
            "hate": {"description": "hatred", "threshold": 0.8},
            "harassment": {"description": "insults", "threshold": 0.8, "action": "warn"},
            "violence": {"description": "injury", "threshold": 0.8, "action": "log"},
        },
    }
    return Policy.model_validate(values | changes)


REFLECTION: dict[str, Any] = {"question": "Was that A) fine or B) not?", "answers": ["not"], "asks": 0.5, "sure": 0.9}
