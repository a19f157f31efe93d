"""Model weights from the formats that people have them in: consolidated, Hugging Face and GGUF."""

from cierzo.weights.gguf_header import read_metadata
from cierzo.weights.load import load_model
from cierzo.weights.packed import quantize_model
from cierzo.weights.source import WeightSource, open_source

__all__ = ["WeightSource", "load_model", "open_source", "quantize_model", "read_metadata"]
