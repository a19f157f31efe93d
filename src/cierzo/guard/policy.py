"""What is looked for in texts and what is done about it: a YAML file that people can read."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cierzo.errors import CierzoError
from cierzo.guard.classifier import ANY, CATEGORIES, NEVER

Action = Literal["allow", "log", "warn", "prompt", "refuse"]
Stage = Literal["input", "output"]
Mode = Literal["shadow", "enforce"]

ACTIONS: tuple[Action, ...] = ("allow", "log", "warn", "prompt", "refuse")
"""From the mildest to the hardest."""
_FOLDER = Path(__file__).parent / "policies"

Probability = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Category(_Strict):
    """One thing that is looked for.

    Attributes:
        threshold: a text whose score reaches it is flagged.
        action: what then happens.
        stage: whether questions, answers or both are judged.
    """

    description: str
    threshold: Probability
    action: Action = "refuse"
    stage: Literal["input", "output", "both"] = "both"

    def judges(self, stage: Stage) -> bool:
        return self.stage in (stage, "both")


class Platt(_Strict):
    """p = 1 / (1 + exp(-(slope x + intercept))), x the model's own logit (Platt 1999); fitted by `moderate eval`."""

    slope: float
    intercept: float


class Reflection(_Strict):
    """The second stage: the model itself is asked about texts of which the first is not sure.

    Attributes:
        question: appended after the conversation; it offers the letters A (acceptable), B, C, ...
        answers: what each letter from B on means.
        asks: from this part of a category's threshold on (times the threshold) the model is asked ...
        sure: ... up to this score, from which the first stage decides alone.
        threshold: the calibrated probability that the text is not acceptable, from which it is flagged.
        calibration: by the model's name; another model's verdicts are taken as they are.
    """

    question: str
    answers: Annotated[list[str], Field(min_length=1, max_length=25)]
    asks: Probability = 1.0
    sure: Probability = 0.9
    threshold: Probability = 0.5
    calibration: dict[str, Platt] = {}


class Reads(_Strict):
    """From which score of `any`, by its words alone, the encoder reads a text too: 0 for always, 1 for never.

    Reading takes milliseconds where words take a tenth of one. A question is judged once, an answer many times.
    """

    input: Probability = 0.2
    output: Probability = 0.5


class Policy(_Strict):
    """A policy as its file says it.

    Attributes:
        mode: "shadow" judges and tells, but changes no answer.
        on_error: what happens to a text that could not be judged.
        refusal: the answer to what is refused.
        guardrail_prompt: system text for the model, in front of the user's own.
        guardrail_always: for every chat, or only where a finding's action is `prompt` (or a request's `safe_prompt`).
        turns: messages of a conversation that are judged together.
        hold: characters of an answer that wait to be judged, at most; the first ones wait for a whole word only.
        lookahead: characters that are judged before those in front of them are shown.
        figures: what `cierzo moderate eval --write` measured.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str
    mode: Mode = "shadow"
    on_error: Literal["allow", "refuse"] = "refuse"
    refusal: Annotated[str, Field(min_length=1)] = "I can't help with that."
    guardrail_prompt: str | None = None
    guardrail_always: bool = False
    reads: Reads = Reads()
    turns: Annotated[int, Field(ge=1, le=64)] = 6
    hold: Annotated[int, Field(ge=1, le=10_000)] = 48
    lookahead: Annotated[int, Field(ge=0, le=10_000)] = 0
    categories: dict[str, Category] = {}
    reflection: Reflection | None = None
    figures: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> "Policy":
        for name, category in self.categories.items():
            if name not in (*CATEGORIES, ANY):
                raise ValueError(f"there is no category {name!r}: use some of {', '.join((*CATEGORIES, ANY))}")
            if category.action == "prompt" and category.stage != "input":
                raise ValueError(f"{name}: the action prompt comes before an answer, so it needs `stage: input`")
            if category.action == "prompt" and self.guardrail_prompt is None:
                raise ValueError(f"{name}: the action prompt needs a guardrail_prompt")
        if self.guardrail_always and self.guardrail_prompt is None:
            raise ValueError("guardrail_always needs a guardrail_prompt")
        return self

    def judged(self, stage: Stage) -> dict[str, Category]:
        """The categories that count at this stage."""
        return {name: category for name, category in self.categories.items() if category.judges(stage)}

    def reads_from(self, stage: Stage) -> float:
        """The score of `any` from which texts of this stage are read."""
        found = self.reads.input if stage == "input" else self.reads.output
        return found if found < 1 else NEVER

    @cached_property
    def on(self) -> bool:
        """Whether it does anything."""
        return bool(self.categories or self.guardrail_always)

    @classmethod
    def load(cls, name: str | Path) -> "Policy":
        """A shipped policy (off, standard, strict) by its name, or one of a YAML file.

        Raises:
            CierzoError: there is none, or what is wrong in it.
        """
        import yaml

        path = Path(name)
        if path.parent == Path() and not path.suffix:
            path = _FOLDER / f"{name}.yaml"
            if not path.is_file():
                shipped = ", ".join(sorted(each.stem for each in _FOLDER.glob("*.yaml")))
                raise CierzoError(f"there is no policy {str(name)!r}: use one of {shipped}, or a YAML file")
        try:
            values = yaml.load(path.read_text(encoding="utf-8"), Loader=_unique_keys())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise CierzoError(f"cannot read the policy {path}: {error}") from None
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the policy"
            raise CierzoError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None


def _unique_keys() -> Any:
    """YAML's safe loader, which would let the second of two equal keys win in silence."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is there twice", node.start_mark)
            return super().construct_mapping(node, deep)

    return Loader
