"""What a server can be told, by flags, the environment and a YAML file: one definition for all three."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from cierzo.errors import CierzoError

PREFIX = "CIERZO_"
_LOOPBACK = ("127.", "localhost", "::1")


@dataclass(frozen=True)
class Said:
    """What `--help` says of a setting, and the numbers that it can be."""

    help: str
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Settings:
    """Every field is a flag (`--max-body`), an environment variable (`CIERZO_MAX_BODY`) and a key of the YAML file."""

    models: Annotated[
        list[str], Said("Models, each a path or a known name, or NAME=either; the first is loaded at once.")
    ] = field(default_factory=list)
    host: Annotated[str, Said("Address to listen at.")] = "127.0.0.1"
    port: Annotated[int, Said("Port to listen at; 0 takes a free one.", 0, 65535)] = 8000
    api_keys_file: Annotated[
        str | None, Said("File with a line `NAME sha256:HASH` for each key; --new-key makes one.")
    ] = None
    allow_public: Annotated[bool, Said("Listen beyond this machine although there is no key.")] = False
    allowed_hosts: Annotated[
        list[str], Said("Host names that clients may use when there is no key, beside the loopback's.")
    ] = field(default_factory=list)
    cors_origins: Annotated[list[str], Said("Origins whose web pages may call this server; none by default.")] = field(
        default_factory=list
    )

    max_requests: Annotated[int, Said("Requests in hand at most: being read, waiting or answered.", 1)] = 512
    max_waiting: Annotated[int, Said("Answers of a model that wait for their turn at most, beside max_running.", 0)] = (
        256
    )
    max_per_key: Annotated[int | None, Said("Requests in hand of one key at most.", 1)] = None
    max_body: Annotated[int, Said("Bytes of a request's body at most.", 1024)] = 4 * 2**20
    max_prompt: Annotated[int | None, Said("Tokens of a prompt at most; the context when left out.", 1)] = None
    max_n: Annotated[int, Said("Answers to one prompt at most.", 1)] = 8
    max_prompts: Annotated[int, Said("Prompts or texts in one request at most.", 1)] = 128
    max_stop: Annotated[int, Said("Stop texts of a request at most, of 256 characters each.", 1)] = 16
    max_schema: Annotated[
        int, Said("Characters of a request's tools, and of its form (schema, grammar), at most.", 1)
    ] = 65536
    min_priority: Annotated[int, Said("The lowest `priority` a client may ask for; lower ones stand in front.")] = 0
    body_timeout: Annotated[float, Said("Seconds for a request's head, and for its body, to arrive.", 0.1)] = 30.0
    request_timeout: Annotated[float, Said("Seconds for an answer at most.", 0.1)] = 600.0
    drain_timeout: Annotated[float, Said("Seconds that answers may take to end after SIGTERM.", 0)] = 30.0

    dtype: Annotated[str, Said("Type of the weights in memory: auto, float32, bfloat16.")] = "auto"
    device: Annotated[str, Said("Where to compute: auto, cpu, cuda.")] = "auto"
    chat_template: Annotated[
        str | None, Said("Instead of the model's own: chatml, llama-2, mistral, or a Jinja file.")
    ] = None
    max_seq_len: Annotated[
        int | None, Said("Longest prompt and answer together, in tokens; the model's limit else.", 1)
    ] = None
    allow_beyond_limit: Annotated[bool, Said("Let a model with windows go on past its limit.")] = False
    chunk_size: Annotated[int, Said("Tokens computed in one step at most.", 1)] = 512
    cache_dtype: Annotated[
        str, Said("Type of the keys and values in the cache: auto, float32, bfloat16, int8 (half the memory).")
    ] = "auto"
    cache_tokens: Annotated[
        int | None, Said("Tokens that the cache holds; by default what half the free memory holds.", 1)
    ] = None
    mmap: Annotated[
        bool, Said("A packed model's weights stay in their file; else they are copied: faster where memory is.")
    ] = True
    max_running: Annotated[int, Said("Answers computed together at most.", 1)] = 64
    keep: Annotated[
        float | None, Said("Seconds that an unused model stays loaded; until memory is needed else.", 0)
    ] = None

    guard: Annotated[str | None, Said("Judge questions and answers by a policy: off, standard, strict, or a file.")] = (
        None
    )
    guard_mode: Annotated[
        str | None, Said("Instead of the policy's: shadow judges and tells but changes nothing, enforce acts.")
    ] = None
    guard_log: Annotated[str | None, Said("File for what the guard finds, a JSON object a line.")] = None
    guard_log_text: Annotated[bool, Said("Write texts there as they are, not their hashes.")] = False

    log_level: Annotated[str, Said("debug, info, warning or error.")] = "info"
    log_prompts: Annotated[bool, Said("Write what was asked into the log.")] = False

    def __post_init__(self) -> None:
        for name, _, said in options():
            value, least, most = getattr(self, name), said.least, said.most
            if value is None or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if (least is not None and value < least) or (most is not None and value > most) or value != value:
                limits = f"at least {least}" if most is None else f"from {least} to {most}"
                raise CierzoError(f"{name} must be {limits}, not {value}")
        if self.guard_mode not in (None, "shadow", "enforce"):
            raise CierzoError(f"guard_mode must be shadow or enforce, not {self.guard_mode!r}")
        if self.guard is None and (self.guard_mode is not None or self.guard_log is not None or self.guard_log_text):
            raise CierzoError("guard_mode, guard_log and guard_log_text need a guard: name a policy, such as standard")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise CierzoError(f"log_level must be debug, info, warning or error, not {self.log_level!r}")

    @property
    def sources(self) -> dict[str, str]:
        """The models' paths by the names that clients use.

        Raises:
            CierzoError: two models of one name.
        """
        from cierzo.weights.catalogue import catalogue  # which imports PyTorch: `cierzo --help` does not wait

        sources: dict[str, str] = {}
        for text in self.models or [catalogue().default]:
            name, given, source = text.partition("=")
            source = source if given else text
            name = name if given else _short_name(text)
            if not name or not source:
                raise CierzoError(f"models: {text!r} is neither a model nor NAME=MODEL")
            if name in sources:
                raise CierzoError(f"two models are called {name!r}: give one another name, as in NAME={source}")
            sources[name] = source
        return sources

    @property
    def public(self) -> bool:
        """Whether other machines can reach the server."""
        return not self.host.startswith(_LOOPBACK)


def _short_name(model: str) -> str:
    path = Path(model)
    return path.stem if path.suffix == ".gguf" else path.name or path.resolve().name


def options() -> list[tuple[str, Any, Said]]:
    """Every setting's name, its type, and what is said of it."""
    hints = get_type_hints(Settings, include_extras=True)
    return [(one.name, *get_args(hints[one.name])) for one in fields(Settings)]


def settings_from(
    flags: Mapping[str, Any], config: Path | None = None, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Settings of flags (None where not given), else of the environment, else of the YAML file, else the defaults.

    Raises:
        CierzoError: an unknown key, or a value that does not fit.
    """
    settings = Settings()
    given: list[tuple[str, Mapping[str, Any]]] = [("", {k: v for k, v in flags.items() if v is not None and v != []})]
    variables = {name: environment[PREFIX + name.upper()] for name in flags if PREFIX + name.upper() in environment}
    given.append((PREFIX, variables))
    if config is not None:
        given.append((f"{config}: ", _read(config)))
    for where, values in reversed(given):
        typed = {}
        for name, value in values.items():
            shown = f"{where}{name.upper() if where == PREFIX else name}"
            typed[name] = _typed(shown, name, value)
        settings = replace(settings, **typed)
    return settings


def _read(config: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CierzoError(f"cannot read the settings in {config}: {error}") from None
    if not isinstance(values, dict):
        raise CierzoError(f"{config}: settings are lines `name: value`")
    known = [one.name for one in fields(Settings)]
    for name in values:
        if name not in known:
            near = get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else "`cierzo serve --print-config` shows what there is"
            raise CierzoError(f"{config}: there is no setting {name!r}: {hint}")
    return values


def _typed(shown: str, name: str, value: Any) -> Any:
    """A value of the setting's type; texts are read as the environment writes them."""
    from pydantic import TypeAdapter, ValidationError

    hint = get_type_hints(Settings)[name]
    if isinstance(value, str) and hint == list[str]:
        value = [part.strip() for part in value.split(",") if part.strip()]
    if value == "" and type(None) in get_args(hint):
        value = None
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        raise CierzoError(f"{shown}: {error.errors()[0]['msg']}, not {value!r}") from None


def printed(settings: Settings) -> str:
    """The settings as a YAML file that says the same."""
    import yaml

    lines = []
    for name, _, said in options():
        lines += [f"# {said.help}", yaml.safe_dump({name: getattr(settings, name)}).rstrip(), ""]
    return "\n".join(lines)
