"""Cierzo runs the Mistral 7B family of open language models as they were published.

The public face is loaded on first use, so that `import cierzo` and `cierzo --version` do not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cierzo.version import __version__

if TYPE_CHECKING:
    from cierzo.engine.request import Completion, Delta, FinishReason, SamplingParams, Usage
    from cierzo.llm import LLM, load
    from cierzo.ops.machine import Machine, machine
    from cierzo.tokens.convert import tokenizer_files, tokenizer_metadata
    from cierzo.tokens.interface import Message, Tokenizer
    from cierzo.tokens.load import load_tokenizer

_MODULE_OF = {
    "LLM": "cierzo.llm",
    "load": "cierzo.llm",
    "Machine": "cierzo.ops.machine",
    "machine": "cierzo.ops.machine",
    "Completion": "cierzo.engine.request",
    "Delta": "cierzo.engine.request",
    "FinishReason": "cierzo.engine.request",
    "SamplingParams": "cierzo.engine.request",
    "Usage": "cierzo.engine.request",
    "Message": "cierzo.tokens.interface",
    "Tokenizer": "cierzo.tokens.interface",
    "load_tokenizer": "cierzo.tokens.load",
    "tokenizer_files": "cierzo.tokens.convert",
    "tokenizer_metadata": "cierzo.tokens.convert",
}

__all__ = [
    "LLM",
    "Completion",
    "Delta",
    "FinishReason",
    "Machine",
    "Message",
    "SamplingParams",
    "Tokenizer",
    "Usage",
    "__version__",
    "load",
    "load_tokenizer",
    "machine",
    "tokenizer_files",
    "tokenizer_metadata",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'cierzo' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
