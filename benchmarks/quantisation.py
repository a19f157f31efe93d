"""What few bits cost: perplexity and LAMBADA of a model against its bits a weight, ours and llama.cpp's.

    python benchmarks/quantisation.py [--data ../shared/data] [--work FOLDER] [--only WORD]... [--plot FILE.svg]

The weights are SmolLM2-135M's, which come from a file in 4 bits and would lie on a grid. They are taken off it by exact
rescaling: random factors of the channels, which the norms, v and o, up and down take up between them, so that the model
computes the same (the tied embedding cannot be rescaled, and stays on Q8_0's grid). Calibration sees other novels than
the perplexity. Bits are those of the file's weights. Ours run on the native kernels, llama.cpp as it is, both with int8
activations; "truth" is float32. LAMBADA: the last word, all of its tokens the likeliest.

llama.cpp's K-quants take rows of multiples of 256, which SmolLM2 has in w2 alone (1,536): elsewhere they fall back to
other types. So `--alone w2` also puts that matrix of each file into the true model and computes in float32: what its
few bits cost alone. Scaling moves factors to other matrices, so look at ours without it.
"""

import argparse
import gzip
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from cierzo import load_tokenizer, tokenizer_files, tokenizer_metadata
from cierzo.ops import PackedContext
from cierzo.weights import WeightSource, load_model, open_source, quantize_model
from cierzo.weights.calibrate import Method, quantize_calibrated
from cierzo.weights.export import export_consolidated
from cierzo.weights.export_gguf import export_gguf
from cierzo.weights.pull import resolve_model

RIVAL = Path.home() / ".cache" / "cierzo-rivals" / "llama.cpp" / "bin" / "python"
SCORES = Path(__file__).parent / "rivals" / "llama_cpp_scores.py"
LLAMA_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}
"""llama_ftype's numbers."""


class Texts(NamedTuple):
    novels: list[list[int]]
    lambada: list[tuple[list[int], int]]
    """Token ids, and how many of them are the last word."""


class Row(NamedTuple):
    name: str
    bits: float
    perplexity: float
    lambada: float
    seconds: float


def off_the_grid(gguf: Path, folder: Path, spread: float = 0.3, seed: int = 0) -> None:
    """The model as a consolidated float32 folder, rescaled."""
    export_consolidated(gguf, folder, dtype=torch.float32, tokenizer=lambda folder: tokenizer_files(gguf, folder))
    source = open_source(folder)
    config, w = source.config, {name: source.tensor(name).clone() for name in source.shapes}
    generator = torch.Generator().manual_seed(seed)

    def factors(count: int) -> torch.Tensor:
        return torch.exp(spread * torch.randn(count, generator=generator))

    for n in range(config.n_layers):
        layer = f"layers.{n}."

        def scale(name: str, by: torch.Tensor, layer: str = layer) -> None:
            w[f"{layer}{name}.weight"] *= by

        for norm, names in (("attention_norm", ("wq", "wk", "wv")), ("ffn_norm", ("w1", "w3"))):
            by = factors(config.dim)
            scale(norm, 1 / by)
            for name in names:
                scale(f"{'attention' if norm == 'attention_norm' else 'feed_forward'}.{name}", by)
        of_values = factors(config.n_kv_heads * config.head_dim)
        scale("attention.wv", of_values.unsqueeze(1))
        shared = of_values.view(config.n_kv_heads, 1, -1).expand(-1, config.n_heads // config.n_kv_heads, -1)
        scale("attention.wo", 1 / shared.reshape(-1))
        of_hidden = factors(config.hidden_dim)
        scale("feed_forward.w3", of_hidden.unsqueeze(1))
        scale("feed_forward.w2", 1 / of_hidden)
    save_file(w, folder / "consolidated.safetensors")


def read_texts(
    data: Path, tokenizer: Any, length: int, novels: int, lambada: int, calibration: int
) -> tuple[Texts, list[list[int]]]:
    """What is measured on, and what is calibrated on."""
    with gzip.open(data / "corpus" / "novels.jsonl.gz", "rt", encoding="utf-8") as file:
        books = [json.loads(line)["text"] for line in file]
    pieces = [tokenizer.encode(book[40_000:50_000])[:length] for book in books]
    items = []
    with (data / "eval" / "foundry" / "lambada_openai.jsonl").open(encoding="utf-8") as file:
        for line in list(file)[:lambada]:
            entry = json.loads(line)
            text = entry.get("text") or entry["context"] + " " + entry["continuation"]
            before, _, word = text.strip().rpartition(" ")
            context, last = tokenizer.encode(before), tokenizer.encode(f" {word}")
            items.append((context + last, len(last)))
    return Texts(pieces[:novels], items), pieces[novels : novels + calibration]


def summary(
    texts: Texts, scores: Callable[[Sequence[list[int]]], tuple[list[list[int]], list[list[float]]]]
) -> tuple[float, float]:
    """Perplexity on the novels and accuracy on LAMBADA, out of a function that gives best tokens and logprobs."""
    everything = [*texts.novels, *(ids for ids, _ in texts.lambada)]
    best, logprobs = scores(everything)
    n = len(texts.novels)
    flat = [value for row in logprobs[:n] for value in row]
    right = sum(row[-count:] == ids[-count:] for (ids, count), row in zip(texts.lambada, best[n:], strict=True))
    return math.exp(-sum(flat) / len(flat)), right / len(texts.lambada)


def ours(path: Path, packed: bool) -> Callable[[Sequence[list[int]]], tuple[list[list[int]], list[list[float]]]]:
    model = load_model(path, packed=packed, dtype=None if packed else torch.float32)

    def scores(texts: Sequence[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
        best, logprobs = [], []
        with torch.inference_mode():
            for ids in texts:
                tokens = torch.tensor(ids)
                rows = model(tokens, PackedContext([len(ids)]))[:-1]
                best.append(rows.argmax(-1).tolist())
                real = rows.gather(1, tokens[1:, None]).squeeze(1)
                logprobs.append((real - rows.logsumexp(-1)).tolist())
        return best, logprobs

    return scores


def rival(job: dict[str, Any]) -> Callable[[Sequence[list[int]]], tuple[list[list[int]], list[list[float]]]]:
    def scores(texts: Sequence[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
        text = json.dumps(job | {"texts": texts, "threads": torch.get_num_threads()})
        result = subprocess.run([str(RIVAL), str(SCORES)], input=text, capture_output=True, text=True, check=True)
        found = json.loads(result.stdout)
        return found["best"], found["logprobs"]

    return scores


def bits_of(path: Path) -> float:
    """Bits a weight of the file, its matrices alone."""
    if path.is_dir():
        size = (path / "packed.safetensors").stat().st_size
    else:
        import gguf

        reader = gguf.GGUFReader(path)
        size = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    return 8 * size / open_source(path).config.n_params


def matrix_bits(source: WeightSource, name: str) -> float:
    """Bits a weight of one matrix as it is stored."""
    import gguf

    kind = source.kind(name)
    if kind in gguf.GGMLQuantizationType.__members__:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        return 8 * size / block
    return 8 * source.packed(name).data.nbytes / math.prod(source.shapes[name])


def alone(matrix: str, truth: Path, files: dict[str, Path], novels: Sequence[list[int]]) -> list[dict[str, Any]]:
    """What perplexity a matrix of each file costs in the true model, with the standard error of the difference."""

    def losses(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([
                torch.nn.functional.cross_entropy(
                    model(torch.tensor(ids), PackedContext([len(ids)]))[:-1], torch.tensor(ids[1:]), reduction="none")
                for ids in novels
            ])  # fmt: skip

    model = load_model(truth, dtype=torch.float32, packed=False)
    real = losses(model)
    parameters, rows = dict(model.named_parameters()), []
    for name, path in files.items():
        source = open_source(path)
        places = [place for place in source.shapes if place.endswith(f".{matrix}.weight")]
        with torch.no_grad():
            for place in places:
                parameters[place].copy_(source.tensor(place))
        more = losses(model) - real
        bits = sum(matrix_bits(source, place) for place in places) / len(places)
        cost, error = math.expm1(more.mean().item()), (more.std() / len(more) ** 0.5).item()
        rows.append({"name": name, "matrix": matrix, "bits": bits, "cost": cost, "error": error})
        print(f"{matrix} alone, {name:<34} {bits:6.3f} bits, perplexity {cost:+.2%} ± {error:.2%}", flush=True)
    return rows


def run(options: argparse.Namespace) -> tuple[list[Row], list[dict[str, Any]]]:
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    truth = work / "truth"
    if not truth.exists():
        off_the_grid(resolve_model(None, progress=True), truth)
    texts, calibration = read_texts(
        options.data, load_tokenizer(truth), options.length, options.novels, options.lambada, options.calibration
    )
    rows: list[Row] = []
    files: dict[str, Path] = {}

    def add(name: str, path: Path, make: Callable[[], None], scores: Callable[[], Any], bits: float = 0.0) -> None:
        if options.only and not any(word in name for word in options.only):
            return
        start = time.perf_counter()
        if not path.exists():
            make()
        seconds = time.perf_counter() - start
        files[name] = path
        perplexity, accuracy = summary(texts, scores())
        rows.append(Row(name, bits or bits_of(path), perplexity, accuracy, seconds))
        print("{:<34} {:6.3f} {:9.3f} {:8.1%} {:7.1f} s".format(*rows[-1]), flush=True)

    add("truth, float32", truth, lambda: None, lambda: ours(truth, False), 32.0)

    def packed(name: str, path: str, make: Callable[[Path], None]) -> None:
        out = work / path
        add(name, out, lambda: make(out), lambda: ours(out, True))

    packed("ours q8, nearest", "q8", lambda out: quantize_model(truth, out, format="q8"))
    packed("ours q4t, nearest", "q4t", lambda out: quantize_model(truth, out, format="q4t"))
    packed("ours q4, nearest", "q4", lambda out: quantize_model(truth, out, format="q4"))
    steps = {
        "scaling": Method(correction=False),
        "correction": Method(scaling=False),
        "scaling and correction": Method(),
    }
    for format, (name, method) in product(("q4t", "q4"), steps.items()):
        packed(
            f"ours {format}, {name}", f"{format}-{name.replace(' ', '-')}",
            lambda out, format=format, method=method: quantize_calibrated(  # type: ignore[misc]
                truth, out, calibration, format=format, method=method),
        )  # fmt: skip
    for bits in options.bits:
        packed(
            f"ours mixed, {bits:g} bits", f"mixed-{bits:g}",
            lambda out, bits=bits: quantize_calibrated(truth, out, calibration, method=Method(bits=bits)),  # type: ignore[misc]
        )  # fmt: skip
    packed("ours q8, calibrated", "q8-calibrated", lambda out: quantize_calibrated(
        truth, out, calibration, format="q8"))  # fmt: skip
    if RIVAL.exists():
        half = work / "truth-f16.gguf"
        if not half.exists():
            export_gguf(truth, half, vocabulary=tokenizer_metadata(truth), name="truth")
        for kind in options.rivals:
            out = work / f"llama-{kind}.gguf"
            job: dict[str, Any] = {"model": str(out), "quantize": [str(half), LLAMA_TYPES[kind]]}
            made = lambda job=job: subprocess.run(  # noqa: E731
                [str(RIVAL), str(SCORES)], input=json.dumps(job | {"texts": [], "threads": 2}), text=True, check=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            add(f"llama.cpp {kind}", out, made, lambda out=out: rival({"model": str(out)}))  # type: ignore[misc, arg-type]
    else:
        print("llama.cpp is not installed: benchmarks/rivals/install.sh", file=sys.stderr)
    files.pop("truth, float32", None)
    return rows, [row for matrix in options.alone for row in alone(matrix, truth, files, texts.novels)]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Perplexity against bits, as an SVG: no library draws so little."""
    truth = next((row.perplexity for row in rows if row.name.startswith("truth")), None)
    shown = [row for row in rows if row.bits < 32]
    xs, ys = [row.bits for row in shown], [row.perplexity for row in shown]
    left, right, low, high = min(xs) - 0.2, max(xs) + 1.5, min([*ys, truth or min(ys)]) * 0.99, max(ys) * 1.02

    def at(x: float, y: float) -> tuple[float, float]:
        return 60 + 700 * (x - left) / (right - left), 440 - 400 * (y - low) / (high - low)

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="800" height="480" font-family="sans-serif" font-size="11">',
        '<rect width="800" height="480" fill="white"/>',
        '<text x="300" y="474">bits a weight</text><text x="15" y="20">perplexity</text>',
    ]

    def line(y: float, colour: str, label: str) -> None:
        _, v = at(left, y)
        parts.append(f'<line x1="60" x2="760" y1="{v:.0f}" y2="{v:.0f}" stroke="{colour}"/>')
        parts.append(f'<text x="8" y="{v + 4:.0f}">{label}</text>')

    for y in np.linspace(low, high, 6):
        line(y, "#ddd", f"{y:.1f}")
    if truth:
        line(truth, "green", "float32")
    for x in range(math.ceil(left), math.floor(right) + 1):
        parts.append(f'<text x="{at(x, low)[0]:.0f}" y="456">{x}</text>')
    for row in shown:
        u, v = at(row.bits, row.perplexity)
        colour = "#c33" if row.name.startswith("llama") else "#36c"
        parts.append(f'<circle cx="{u:.0f}" cy="{v:.0f}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{u + 6:.0f}" y="{v + 4:.0f}">{row.name}</text>')
    parts.append("</svg>")
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "cierzo-quantisation")
    parser.add_argument("--only", action="append", metavar="WORD", help="only rows whose name has this word")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--novels", type=int, default=8)
    parser.add_argument("--lambada", type=int, default=100)
    parser.add_argument("--calibration", type=int, default=32, help="novels to calibrate on")
    parser.add_argument("--bits", type=float, nargs="*", default=[4.6, 5.0, 5.5])
    parser.add_argument(
        "--rivals", nargs="*", choices=LLAMA_TYPES, default=["Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]
    )
    parser.add_argument("--alone", nargs="*", default=[], metavar="MATRIX", help="also what it costs by itself, as w2")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    rows, by_matrix = run(options)
    if options.plot:
        plot(rows, options.plot)
    print(json.dumps({"benchmark": "quantisation", "rows": [row._asdict() for row in rows], "alone": by_matrix}))


if __name__ == "__main__":
    main()
