"""The seam for speed: every hot operation of the model, cut where fast kernels are.

Nothing above this package knows which implementation runs: `seam` chooses between the native kernels and the PyTorch
reference, which training uses as well.
"""

from cierzo.ops.context import AttentionContext, BlockTable, KeyValues, PackedContext, PagedCache, PagedContext, Rows
from cierzo.ops.kept import CACHE_TYPES, head_width
from cierzo.ops.machine import Machine, machine
from cierzo.ops.memory import free_memory
from cierzo.ops.native import EncoderLayers, EncoderWeights
from cierzo.ops.packed import (
    GGML_GRIDS,
    Format,
    PackedMatrix,
    best_steps,
    from_blocks,
    pack,
    pack_coded,
    packed_shape,
    quantize,
)
from cierzo.ops.reference import Draw, Expert, Rotation, Weight, rms_norm
from cierzo.ops.room import huge_pages
from cierzo.ops.seam import (
    LayerWeights,
    attend,
    down,
    embed,
    gate_up,
    logits,
    mixture,
    project_out,
    project_qkv,
    rotation,
    run_layers,
    runs_layers,
    sample,
)
from cierzo.ops.window import Window, first_visible

__all__ = [
    "CACHE_TYPES",
    "GGML_GRIDS",
    "AttentionContext",
    "BlockTable",
    "Draw",
    "EncoderLayers",
    "EncoderWeights",
    "Expert",
    "Format",
    "KeyValues",
    "LayerWeights",
    "Machine",
    "PackedContext",
    "PackedMatrix",
    "PagedCache",
    "PagedContext",
    "Rotation",
    "Rows",
    "Weight",
    "Window",
    "attend",
    "best_steps",
    "down",
    "embed",
    "first_visible",
    "free_memory",
    "from_blocks",
    "gate_up",
    "head_width",
    "huge_pages",
    "logits",
    "machine",
    "mixture",
    "pack",
    "pack_coded",
    "packed_shape",
    "project_out",
    "project_qkv",
    "quantize",
    "rms_norm",
    "rotation",
    "run_layers",
    "runs_layers",
    "sample",
]
