"""The record of a run: one JSON file with all that is needed to repeat it, never written twice."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from cierzo.engine import SamplingParams
from cierzo.errors import CierzoError
from cierzo.files import read_own, write_whole
from cierzo.llm import LLM
from cierzo.version import __version__

FORMAT = 1
_PROMPT, _ANSWER = 128, 33  # tokens
_BY_THE_START = ("cache_tokens", "threads")
"""Facts of a model that follow from what the machine has free when it is loaded, and that no answer depends on."""
_PARTS = ("torch", "numpy", "lm_eval", "datasets", "transformers", "tokenizers", "mistral_common", "gguf")


def about_model(llm: LLM) -> dict[str, Any]:
    """What ran: the card, and a hash of the weights' files."""
    card = llm.card
    return {
        "name": card.name,
        "sha256": hash_of(llm.path),
        "format": card.format,
        "parameters": card.parameters,
        "weight_bytes": card.weights,
        "cache_tokens": card.cache_tokens,
        "context": card.max_seq_len,
        "window": card.window,
        "instruction_set": card.isa,
        "threads": card.threads,
        "begin_of_text": llm.tokenizer.bos_id,
    }


def lasting(about: dict[str, Any]) -> dict[str, Any]:
    """What of `about_model` is the same at each start, so that a run that was killed is known again."""
    return {key: value for key, value in about.items() if key not in _BY_THE_START}


def common_settings(chat_template: str | None) -> dict[str, Any]:
    """Settings of every kind of run: the code, and the template as it was given; a file of one by its content."""
    if chat_template is not None and Path(chat_template).is_file():
        chat_template = f"{Path(chat_template).name}, sha256 {hash_of(Path(chat_template))}"
    return {"chat_template": chat_template, "version": __version__, "commit": _commit()}


def speed(llm: LLM) -> dict[str, float]:
    """Tokens per second of one prompt and one answer, measured once and shortly: what other work leaves."""
    prompt = [llm.tokenizer.bos_id or 0] + [7 + n % 97 for n in range(_PROMPT - 1)]
    usage = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=_ANSWER, ignore_eos=True))[0].usage
    return {
        "prompt_tokens_per_second": _PROMPT / usage.time_to_first_token,
        "decode_tokens_per_second": (_ANSWER - 1) / (usage.seconds - usage.time_to_first_token),
    }


def about_machine() -> dict[str, Any]:
    """Where it ran, and with what."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "cierzo": __version__,
        "commit": _commit(),
        "versions": {name: version for name in _PARTS if (version := _version(name))},
    }


def new_record(path: Path) -> None:
    """Refuse to write a record over another.

    Raises:
        CierzoError: there is one, or no folder for it.
    """
    if path.exists():
        raise CierzoError(f"{path} is there already: records are never overwritten; choose another --out")
    if not path.parent.is_dir():
        raise CierzoError(f"there is no folder {path.parent} for the record: make it, or choose another --out")


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write the whole file or none."""
    new_record(path)
    write_whole(path, json.dumps({"cierzo_evaluation": FORMAT, **record}, indent=1) + "\n", over=False)


def read_record(path: Path) -> dict[str, Any]:
    """A record that `write_record` wrote.

    Raises:
        CierzoError: it cannot be read, or is something else.
    """
    return read_own(path, "cierzo_evaluation", FORMAT, "no record of `cierzo eval`")


def hash_of(path: Path) -> str:
    """Of a file; of a folder, over its files by name."""
    if path.is_file():
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    whole = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.is_file()):
        whole.update(f"{file.name} {hash_of(file)}\n".encode())
    return whole.hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    """Of the checkout that this is installed from, if any; with a + when files differ from it."""
    folder = Path(__file__).parent
    try:
        said = [
            subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"], ["ls-files", "."])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    if not said[2].stdout:  # installed into a folder inside somebody else's checkout
        return None
    return said[0].stdout.strip() + "+" * bool(said[1].stdout)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
