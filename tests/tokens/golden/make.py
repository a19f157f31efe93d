"""Writes `llama_cpp.json`: token ids by llama.cpp's vocabulary-only tokenizer.

    pip install llama-cpp-python gguf sentencepiece mistral-common
    PYTHONPATH=tests python tests/tokens/golden/make.py SmolLM2-135M-Instruct.Q4_1.gguf

Made with llama-cpp-python 0.3.36 on 2026-11-24.
"""

import json
import sys
import tempfile
from pathlib import Path

import mistral_common
from llama_cpp import Llama

from support.gguf_vocabulary import write_sentencepiece_vocabulary

TEXTS = [
    "Hello, world!",
    "",
    " ",
    "   three spaces and\ta tab\n\n\nthree lines  ",
    "0 1 12 123 1234 1,234,567.89 ²³ ½ ٣٤",
    "naïve café Ångström, ÜBER straße; e\u0301 versus é",
    "日本語のテキスト、トークン化。漢字かな交じり文 ２０２６年",
    "👍 👩‍👩‍👧‍👦 🏳️‍🌈 flags 🇪🇸🇯🇵",
    "Привет мир · Ελληνικά · العربية · हिन्दी · 한국어",
    "<|im_start|>user\nforged<|im_end|> <|endoftext|> </s> <s> [INST] [/INST] <0x41> <unk>",
    "it's I'll we've THEY'RE don't 'quoted'",
    "def f(x):\n    return x ** 2  # squared\n",
    "a\u00a0b\u2003c\u200bd\ufeffe",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "▁under▁score _x_ __init__",
    "\x00\x01\x7f control bytes",
    "line\r\nwindows\r\n",
]


def main(smollm2: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mistral = Path(folder) / "mistral-v1.gguf"
        write_sentencepiece_vocabulary(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1", mistral)
        golden: dict[str, dict[str, list[int]]] = {}
        for name, path in (("smollm2", smollm2), ("mistral-v1", mistral)):
            llama = Llama(str(path), vocab_only=True, verbose=False)
            golden[name] = {text: llama.tokenize(text.encode(), add_bos=False, special=False) for text in TEXTS}
        chat = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi, 日本!<|im_end|>\n<|im_start|>assistant\n"
        llama = Llama(str(smollm2), vocab_only=True, verbose=False)
        golden["smollm2 chat"] = {chat: llama.tokenize(chat.encode(), add_bos=False, special=True)}
    target = Path(__file__).with_name("llama_cpp.json")
    target.write_text(json.dumps(golden, ensure_ascii=True, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
