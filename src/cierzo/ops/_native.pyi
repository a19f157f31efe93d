"""The native module's face (native/bindings.cpp). Tensors are addresses, 0 where there is none."""

from collections.abc import Sequence

SPAN: int

def candidates() -> list[tuple[str, str]]:
    """Names of instruction sets, best first, and why each cannot run here (nothing if it can)."""

def isa() -> str: ...
def use(name: str) -> None: ...
def set_threads(n: int) -> None: ...
def threads() -> int: ...

class Matrix:
    def __init__(self, data: int, bytes: int, format: int, outputs: int, inputs: int) -> None: ...
    @property
    def outputs(self) -> int: ...
    @property
    def inputs(self) -> int: ...

class Tables:
    def __init__(
        self,
        block_size: int,
        n_blocks: int,
        rows: Sequence[int],
        firsts: Sequence[int],
        ends: Sequence[int],
        blocks: Sequence[int],
    ) -> None: ...
    @property
    def n_rows(self) -> int: ...

class Layers:
    def __init__(self, n_heads: int, n_kv_heads: int, head_dim: int, eps: float) -> None: ...
    def add(
        self,
        attention_norm: int,
        ffn_norm: int,
        wq: Matrix,
        wk: Matrix,
        wv: Matrix,
        wo: Matrix,
        w1: Matrix,
        w2: Matrix,
        w3: Matrix,
        k: int,
        v: int,
        bf16: bool,
        window: int,
        group: int,
    ) -> None: ...
    def run(self, x: int, n_rows: int, groups: Sequence[Tables], cos: int, sin: int) -> None: ...

def rotation(positions: int, n: int, frequencies: int, half: int, cos: int, sin: int) -> None: ...
def project_qkv(
    x: int,
    n_rows: int,
    norm: int,
    eps: float,
    wq: Matrix,
    wk: Matrix,
    wv: Matrix,
    cos: int,
    sin: int,
    head_dim: int,
    tables: Tables,
    k: int,
    v: int,
    bf16: bool,
    q: int,
) -> None: ...
def attend(
    q: int,
    n_rows: int,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    window: int,
    tables: Tables,
    k: int,
    v: int,
    bf16: bool,
    out: int,
) -> None: ...
def linear(x: int, n_rows: int, norm: int, eps: float, w: Matrix, residual: int, out: int) -> None: ...
def gate_up(x: int, n_rows: int, norm: int, eps: float, w1: Matrix, w3: Matrix, out: int) -> None: ...
def unpack(w: Matrix, rows: int, n: int, out: int) -> None: ...
def repack(blocks: int, raw: int, bytes: int, shape: Matrix) -> bool: ...
def pack(weights: int, n_rows: int, first: int, shape: Matrix) -> bool: ...
def sample(rows: Sequence[tuple[int, int, float, float, float, int, float]], vocab: int) -> list[int]: ...
