"""`cierzo serve`: the models behind an HTTP API."""

from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from cierzo.errors import CierzoError
from cierzo.serve.settings import Settings, options, printed, settings_from

_MODELS = typer.Argument(help="Paths or known names; the first is loaded at once.", metavar="[NAME=]MODEL")


def serve(
    model: list[str] | None,
    config: Path | None,
    print_config: bool,
    new_key: str | None,
    **flags: Any,
) -> None:
    """Serve models to OpenAI's and Anthropic's clients.

    What no flag says, the environment (CIERZO_PORT for --port, and so on) or the --config file may say.
    """
    if new_key is not None:
        _print_new_key(new_key)
        return
    settings = settings_from({**flags, "models": model}, config)
    if print_config:
        print(printed(settings))
        return
    try:
        from cierzo.serve.run import serve as run
    except ModuleNotFoundError as error:
        raise CierzoError(f"serving needs {error.name}: pip install 'cierzo[serve]'") from None
    run(settings)


def _print_new_key(name: str) -> None:
    from cierzo.serve.auth import new_key

    key, line = new_key(name)
    print(f"the key, which is shown only now: {key}")
    print(f"its line for the file of keys:    {line}")


def _flags() -> list[Parameter]:
    """A flag for every setting but the models, so that there is one list of them."""
    parameters, defaults = [], Settings()
    for name, kind, said in options():
        if name == "models":
            continue
        value, flag = getattr(defaults, name), name.replace("_", "-")
        flags = f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}"
        shown = "" if value in (None, [], False) else f" [default: {value}]"
        option = typer.Option(flags, help=said.help + shown, show_default=False)
        parameters.append(
            Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])
        )
    return parameters


def _signature() -> Signature:
    own = {
        "model": Annotated[list[str] | None, _MODELS],
        "config": Annotated[Path | None, typer.Option(help="YAML file of settings.", exists=True, dir_okay=False)],
        "print_config": Annotated[bool, typer.Option("--print-config", help="Show all settings as YAML, and stop.")],
        "new_key": Annotated[str | None, typer.Option(help="Make an API key of this name, and stop.", metavar="NAME")],
    }
    defaults = {"print_config": False}
    mine = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=kind)
        for name, kind in own.items()
    ]
    return Signature([*mine, *_flags()])


# Typer reads a command's options from its signature.
vars(serve)["__signature__"] = _signature()
serve.__annotations__ = {name: parameter.annotation for name, parameter in _signature().parameters.items()}
