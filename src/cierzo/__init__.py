"""Cierzo runs the Mistral 7B family of open language models as they were published.

The public face is loaded on first use, so that `import cierzo` and `cierzo --version` do not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cierzo.version import __version__

if TYPE_CHECKING:
    from cierzo.async_llm import AsyncLLM
    from cierzo.engine.request import Completion, Delta, FinishReason, SamplingParams, Structure, Usage
    from cierzo.llm import LLM
    from cierzo.loading import LoadOptions, load, load_engine
    from cierzo.models import Models
    from cierzo.ops.machine import Machine, machine
    from cierzo.tokens.convert import tokenizer_files, tokenizer_metadata
    from cierzo.tokens.interface import Message, Tokenizer
    from cierzo.tokens.load import load_tokenizer

_MODULE_OF = {
    "AsyncLLM": "cierzo.async_llm",
    "LLM": "cierzo.llm",
    "LoadOptions": "cierzo.loading",
    "Models": "cierzo.models",
    "load": "cierzo.loading",
    "load_engine": "cierzo.loading",
    "Machine": "cierzo.ops.machine",
    "machine": "cierzo.ops.machine",
    "Completion": "cierzo.engine.request",
    "Delta": "cierzo.engine.request",
    "FinishReason": "cierzo.engine.request",
    "SamplingParams": "cierzo.engine.request",
    "Structure": "cierzo.engine.request",
    "Usage": "cierzo.engine.request",
    "Message": "cierzo.tokens.interface",
    "Tokenizer": "cierzo.tokens.interface",
    "load_tokenizer": "cierzo.tokens.load",
    "tokenizer_files": "cierzo.tokens.convert",
    "tokenizer_metadata": "cierzo.tokens.convert",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "Completion",
    "Delta",
    "FinishReason",
    "LoadOptions",
    "Machine",
    "Message",
    "Models",
    "SamplingParams",
    "Structure",
    "Tokenizer",
    "Usage",
    "__version__",
    "load",
    "load_engine",
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
