"""`cierzo moderate`: judge a text, train the classifier, measure the guard."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cierzo.cli import options as opt
from cierzo.errors import CierzoError


class _TextOrVerb(TyperGroup):
    """A first argument that is no verb is the text to judge."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["text", *args]
        return super().parse_args(ctx, args)


moderate = typer.Typer(no_args_is_help=True, cls=_TextOrVerb, help="Judge a text; train and measure what judges.")

Data = Annotated[Path | None, typer.Option(help="Folder of the public sets; CIERZO_SHARED_DATA when left out.")]


@moderate.callback()
def _group() -> None:
    """Judge a text (`cierzo moderate TEXT`), or train and measure what judges."""


@moderate.command()
def text(
    text: Annotated[str, typer.Argument(help="What is judged; - reads it from stdin.")],
    policy: Annotated[str, typer.Option(help="off, standard, strict, or a YAML file.")] = "standard",
    answer: Annotated[bool, typer.Option("--answer", help="Judge it as a model's answer, not as a question.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Judge a text: what a policy says of it, and the score of each category."""
    with _extra():
        from cierzo.guard import Guard
    guard = Guard(policy, mode="enforce")
    verdict = guard.check(opt.read_stdin("the text to judge") if text == "-" else text, "output" if answer else "input")
    if as_json:
        print(json.dumps({"policy": guard.policy.name, **verdict.shown()}))
        return
    print(f"{guard.policy.name}: {verdict.action}")
    for name, score in sorted(verdict.categories.items(), key=lambda each: -each[1]):
        category = guard.policy.categories.get(name)
        limit = "" if category is None else f"  {category.action} from {category.threshold:g}"
        print(f"{score:6.3f}  {name:24}{limit}{'  <' if name in verdict.flagged else ''}")


@moderate.command()
def train(
    out: Annotated[Path, typer.Argument(help="File for the weights (safetensors).")],
    data: Data = None,
    own: Annotated[list[Path] | None, typer.Option(help="Further labelled texts, a JSON object a line.")] = None,
    encoder: Annotated[Path | None, typer.Option(help="Of `train-encoder`; the shipped one else.")] = None,
) -> None:
    """Train the classifier on public labelled texts, and on one's own.

    An encoder of one's own belongs beside it, as encoder.safetensors.
    """
    from cierzo.guard.classifier import SHIPPED_ENCODER
    from cierzo.guard.data import folder_of
    from cierzo.guard.data import own as own_set
    from cierzo.progress import progress_bar

    with _extra():
        from cierzo.guard.train import trained
    with progress_bar("training", unit="categories") as report:
        texts = [item for path in own or () for item in own_set(path)]
        classifier, about = trained(folder_of(data), texts, report, encoder or SHIPPED_ENCODER)
    classifier.save(out, about)
    print(f"{out}: {out.stat().st_size} bytes; {about['learnt_from']}")
    print(f"AUC, cross-validated: {about['cross_validated_auc']}")
    print(f"by words alone: {about['cross_validated_auc_by_words']}")
    print(f"scores that these parts of the harmless texts reach, left out: {about['reached_by_harmless']}")


@moderate.command(name="train-encoder")
def train_encoder(
    out: Annotated[Path, typer.Argument(help="File for the encoder (safetensors).")],
    data: Data = None,
    base: Annotated[
        Path | None, typer.Option(help="Folder of the encoder to tune, with model.safetensors and vocab.txt.")
    ] = None,
) -> None:
    """Tune the encoder on the further public sets (docs/guard.md lists them); then train the classifier with it."""
    from cierzo.guard.data import folder_of
    from cierzo.progress import progress_bar

    with _extra():
        from cierzo.guard.train_encoder import fetched_base, tuned
    folder = folder_of(data)
    base = base or fetched_base()
    with progress_bar("tuning", unit="steps") as report:
        encoder, about = tuned(folder, base, report)
    encoder.save(out, about)
    print(f"{out}: {out.stat().st_size} bytes; {about['learnt_from']}; loss at the end {about['loss']}")


@moderate.command(name="eval")
def evaluate(
    data: Data = None,
    own: Annotated[list[Path] | None, typer.Option(help="Sets of one's own, a JSON object a line.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Policies; standard and strict when left out.")] = None,
    classifier: Annotated[Path | None, typer.Option(help="Weights of `moderate train`; the shipped ones else.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the curves there.")] = None,
    write: Annotated[list[Path] | None, typer.Option(help="Write what was measured into this policy's file.")] = None,
    model: Annotated[str | None, typer.Option(help="Ask this model too, and calibrate its verdicts.")] = None,
    texts: Annotated[int, typer.Option(min=4, help="Texts of each set that the model is asked about.")] = 60,
    read: Annotated[bool, typer.Option(help="Let --model, or the default model, read answers for refusals.")] = True,
) -> None:
    """Measure the guard on public sets and one's own, beside alt-profanity-check and a list of words.

    With --model, also the model's self-reflection by the first policy that has one, calibrated on the training halves;
    --write keeps the calibration with the policy.
    """
    with _extra():
        from cierzo.cli.moderate_eval import run

        run(
            data, own or [], policy or ["standard", "strict"], classifier, json_file, png, write or [],
            None if model is None else (model, texts), read,
        )  # fmt: skip


class _extra:  # noqa: N801
    """Says which part of the package's extra is missing."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ModuleNotFoundError):
            raise CierzoError(f"this needs {error.name}: pip install 'cierzo[guard]'") from None
