"""The seam for speed: every hot operation of the model, cut where fast kernels are.

Nothing above this package knows which implementation runs. Today there is one, the PyTorch reference, which training
uses as well.
"""

from cierzo.ops.context import AttentionContext, BlockTable, KeyValues, PackedContext, PagedCache, PagedContext, Rows
from cierzo.ops.reference import (
    Expert,
    Rotation,
    attend,
    down,
    embed,
    gate_up,
    logits,
    mixture,
    project_out,
    project_qkv,
    rotation,
)
from cierzo.ops.window import Window, first_visible

__all__ = [
    "AttentionContext",
    "BlockTable",
    "Expert",
    "KeyValues",
    "PackedContext",
    "PagedCache",
    "PagedContext",
    "Rotation",
    "Rows",
    "Window",
    "attend",
    "down",
    "embed",
    "first_visible",
    "gate_up",
    "logits",
    "mixture",
    "project_out",
    "project_qkv",
    "rotation",
]
