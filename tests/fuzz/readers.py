"""The readers under test, each with a valid tiny model to start from, and what a lie may cost.

    PYTHONPATH=tests python -m fuzz.readers --seconds 600 --seed 1

runs by itself, for as long as one likes; the last line is the result as JSON. The process is meant to be thrown away:
it limits its own memory, and ends with a traceback when a reader hangs.
"""

import argparse
import faulthandler
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import gguf
import mistral_common
import torch
from safetensors.torch import save_file

from cierzo.errors import CierzoError
from cierzo.model import ModelConfig
from cierzo.tokens import decode, load_tokenizer
from cierzo.weights import load_model, quantize_model
from cierzo.weights.packing import FILE as PACKED
from fuzz.mutate import Mutator, in_archive, in_bytes, in_json, in_safetensors
from support.checkpoints import huggingface_weights, random_weights, write_consolidated, write_gguf

SECONDS = 10.0
"""The longest that one reading may take."""
FACTOR, CONSTANT = 64, 32 * 2**20
"""Memory that one reading may take: FACTOR times the bytes of the files, and CONSTANT."""
ADDRESS_SPACE = 4 * 2**30
"""Beyond what the process has; what asks for more at once gets a MemoryError, which is a finding."""

SMALL = ModelConfig(
    dim=32, n_layers=2, head_dim=16, hidden_dim=64, n_heads=2, n_kv_heads=1, vocab_size=40, max_seq_len=64
)
TEXT = "Hello, <s>[INST] wörld 日本 </s>"


@dataclass(frozen=True)
class Reader:
    """`make` writes a valid model into a folder; `lies` says how each of its files may be changed."""

    make: Callable[[Path], object]
    lies: dict[str, Mutator]
    read: Callable[[Path], object]


@dataclass
class Result:
    cases: int = 0
    loaded: int = 0
    worst_seconds: float = 0.0
    worst_megabytes: float = 0.0
    worst_factor: float = 0.0
    """Memory over the bytes of the files, of those that have 64 KiB or more."""
    errors: Counter[str] = field(default_factory=Counter)
    found: dict[str, str] = field(default_factory=dict)
    """What is no `CierzoError`, or passes a limit, and the folder that brings it about."""


def encode(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(TEXT, bos=True)
    decode(tokenizer, ids)


def load_gguf(folder: Path) -> None:
    load_model(folder / "model.gguf")


def load_packed_gguf(folder: Path) -> None:
    load_model(folder / "model.gguf", packed=True)


def load_packed(folder: Path) -> None:
    load_model(folder / "packed", packed=True)


def packed_folder(folder: Path) -> None:
    quantize_model(write_consolidated(folder / "original", SMALL, random_weights(SMALL)), folder / "packed")


def huggingface_folder(folder: Path) -> None:
    """Two shards, without `transformers`, which takes seconds to import."""
    weights = list(huggingface_weights(SMALL, random_weights(SMALL)).items())
    placed: dict[str, str] = {}
    for number in range(2):
        shard = dict(weights[number::2])
        save_file({name: tensor.contiguous() for name, tensor in shard.items()}, folder / f"{number}.safetensors")
        placed |= dict.fromkeys(shard, f"{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    config = {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 40, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 16, "max_position_embeddings": 64, "sliding_window": None, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": False,
        "layer_types": ["full_attention"] * 2, "hidden_act": "silu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def fast_tokenizer(folder: Path) -> None:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"Helo, wrd", "ll", "▁w"]
    library = tokenizers.Tokenizer(
        models.BPE(
            {piece: n for n, piece in enumerate(dict.fromkeys(pieces))},
            [("l", "l"), ("▁", "w")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.Punctuation()])
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    library.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "{{ messages[0].content }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1]}))


def sentencepiece_model(folder: Path) -> None:
    from sentencepiece import SentencePieceTrainer

    with (folder / "tokenizer.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter([TEXT, "the cat sat on the mat"] * 20), model_writer=file, vocab_size=320,
            model_type="bpe", byte_fallback=True, minloglevel=2, normalization_rule_name="identity",
        )  # fmt: skip


def tekken(folder: Path) -> None:
    """The published vocabulary, cut to its bytes and a few more."""
    source = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
    values = json.loads(source.read_text(encoding="utf-8"))
    values["vocab"] = values["vocab"][:300]
    values["config"] |= {"default_vocab_size": 330, "default_num_special_tokens": 30}
    (folder / "tekken.json").write_text(json.dumps(values))


def gguf_vocabulary(folder: Path, model: str) -> None:
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre("gpt-2")
    letters = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"Helo, wrdĠ▁", "ll", "He"]
    writer.add_token_list(letters)
    writer.add_token_scores([-float(n) for n in range(len(letters))])
    writer.add_token_types([2, 3, *[6] * 256, *[1] * (len(letters) - 258)])
    writer.add_token_merges(["l l", "H e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{{ messages[0].content }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def small_model(**options: object) -> Callable[[Path], object]:
    return lambda folder: write_consolidated(folder, SMALL, random_weights(SMALL), **options)  # type: ignore[arg-type]


def small_gguf(kind: gguf.GGMLQuantizationType) -> Callable[[Path], object]:
    return lambda folder: write_gguf(folder / "model.gguf", SMALL, random_weights(SMALL), kind)


def shared_weights(folder: Path) -> None:
    """Parameters, views and a storage that two names share."""
    weights = random_weights(SMALL)
    weights["norm.weight"] = torch.nn.Parameter(weights["norm.weight"])
    weights["output.weight"] = weights["tok_embeddings.weight"]
    write_consolidated(folder, SMALL, weights, suffix=".pth")


READERS = {
    "safetensors": Reader(
        small_model(), {"params.json": in_json, "consolidated.00.safetensors": in_safetensors}, load_model
    ),
    "pth": Reader(shared_weights, {"consolidated.00.pth": in_archive}, load_model),
    "huggingface": Reader(
        huggingface_folder,
        {"config.json": in_json, "model.safetensors.index.json": in_json, "0.safetensors": in_safetensors},
        load_model,
    ),
    "gguf": Reader(small_gguf(gguf.GGMLQuantizationType.F16), {"model.gguf": in_bytes}, load_gguf),
    "gguf quantised": Reader(small_gguf(gguf.GGMLQuantizationType.Q8_0), {"model.gguf": in_bytes}, load_gguf),
    "gguf kept in 4 bits": Reader(
        small_gguf(gguf.GGMLQuantizationType.Q4_1), {"model.gguf": in_bytes}, load_packed_gguf
    ),
    "gguf rounded to 8 bits": Reader(
        small_gguf(gguf.GGMLQuantizationType.Q5_0), {"model.gguf": in_bytes}, load_packed_gguf
    ),
    "packed": Reader(packed_folder, {f"packed/{PACKED}": in_safetensors}, load_packed),
    "gguf llama vocabulary": Reader(lambda f: gguf_vocabulary(f, "llama"), {"model.gguf": in_bytes}, encode),
    "gguf gpt2 vocabulary": Reader(lambda f: gguf_vocabulary(f, "gpt2"), {"model.gguf": in_bytes}, encode),
    "tokenizer.json": Reader(
        fast_tokenizer,
        {"tokenizer.json": in_json, "tokenizer_config.json": in_json, "generation_config.json": in_json},
        encode,
    ),
    "tokenizer.model": Reader(sentencepiece_model, {"tokenizer.model": in_bytes}, encode),
    "tekken.json": Reader(tekken, {"tekken.json": in_json}, encode),
}


def memory(key: str) -> int:
    """Bytes: "VmRSS", or since `reset_peak` the most, "VmHWM"."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def run(name: str, reader: Reader, folder: Path, *, seed: int, cases: int, until: float) -> Result:
    """Read lie after lie, until the number of cases or the time is reached."""
    valid, lied = folder / "valid", folder / "lied"
    valid.mkdir(parents=True)
    reader.make(valid)
    reader.read(valid)
    result = Result()
    while result.cases < cases and time.monotonic() < until:
        rng = Random(f"{name}-{seed}-{result.cases}")
        shutil.rmtree(lied, ignore_errors=True)
        shutil.copytree(valid, lied)
        for file in rng.sample(list(reader.lies), rng.choice([1] * 6 + [len(reader.lies)])):
            (lied / file).write_bytes(reader.lies[file](rng, (valid / file).read_bytes()))
        try:
            one_case(reader, lied, result)
        except Exception as error:
            what = f"{type(error).__name__} at {traceback.extract_tb(error.__traceback__)[-1]}: {error}"[:300]
            if what not in result.found:
                kept = folder / f"case-{result.cases}"
                result.found[what] = str(lied.rename(kept))
        result.cases += 1
    return result


def one_case(reader: Reader, folder: Path, result: Result) -> None:
    """Read the files in a folder once; raises what no reader may raise."""
    size = sum(file.stat().st_size for file in folder.iterdir())
    reset_peak()
    before, started = memory("VmRSS"), time.monotonic()
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    said = None
    try:
        reader.read(folder)
        result.loaded += 1
    except CierzoError as error:
        said = str(error)
    finally:
        faulthandler.cancel_dump_traceback_later()
    took = max(0, memory("VmHWM") - before)
    result.worst_seconds = max(result.worst_seconds, time.monotonic() - started)
    result.worst_megabytes = max(result.worst_megabytes, took / 2**20)
    if size >= 2**16:
        result.worst_factor = max(result.worst_factor, took / size)
    assert took <= FACTOR * size + CONSTANT, f"{took} bytes of memory for files of {size}"
    if said is not None:
        assert said.isprintable(), "an error that is not one line of text"
        result.errors[re.sub(r"\d+|'.*?'", "_", said.replace(str(folder), "")).partition("(")[0][:60]] += 1


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--cases", type=int, default=sys.maxsize, help="of each reader")
    arguments.add_argument("--seconds", type=float, default=60.0, help="of all readers together")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--reader", choices=READERS, action="append")
    given = arguments.parse_args()
    chosen = given.reader or list(READERS)
    torch.set_num_threads(1)
    os.environ["RUST_BACKTRACE"] = "0"  # the names in a backtrace take 50 MB
    faulthandler.enable()
    space = memory("VmSize") + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    results: dict[str, Result] = {}
    folder = Path(tempfile.mkdtemp(prefix="cierzo-fuzz-"))
    for name in chosen:
        print(f"{name}: seed {given.seed}, files in {folder / name}", file=sys.stderr, flush=True)
        until = time.monotonic() + given.seconds / len(chosen)
        results[name] = run(name, READERS[name], folder / name, seed=given.seed, cases=given.cases, until=until)
    if not any(result.found for result in results.values()):
        shutil.rmtree(folder)
    print(json.dumps({name: vars(result) for name, result in results.items()}))


if __name__ == "__main__":
    main()
