"""What the model computes."""

from cierzo.model.config import ConfigError, ModelConfig, MoeConfig, WindowGroup
from cierzo.model.presets import PRESETS
from cierzo.model.transformer import Transformer

__all__ = ["PRESETS", "ConfigError", "ModelConfig", "MoeConfig", "Transformer", "WindowGroup"]
