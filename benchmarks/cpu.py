"""Cierzo and its rivals on this machine's CPU: speed of decoding and of prompts, time to the first token, memory.

    benchmarks/rivals/install.sh                                     once
    python benchmarks/make_gguf.py mistral-7b-v0.1 7b.gguf           once
    python benchmarks/cpu.py [--model 7b.gguf]... [--engines cierzo,llama.cpp,openvino,transformers] [--rounds 3]
        [--cierzo-model FOLDER] [--deep 32000]

Run it with a Python that has Cierzo; that one is measured, or the one of --cierzo-python. Every measurement is a
process of its own, one at a time, with the file in the page cache. In the first round each engine tries all its
settings; those that were best at something go on, in an order that turns every round. A figure is the median over the
rounds of the setting that has the best one. Prints a table and one JSON line a model. benchmarks/README.md tells more.
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType
from gguf.quants import quant_shape_to_byte_shape

from cierzo.errors import CierzoError
from cierzo.weights.gguf_header import read_header
from cierzo.weights.pull import resolve_model
from cpu_report import Result, summary, table
from first_answer import cpu_name

HERE = Path(__file__).parent

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "cierzo": [{}],
    "llama.cpp": [
        {"repack": True, "flash": True, "ubatch": 512},
        {"repack": True, "flash": False, "ubatch": 512},
        {"repack": True, "flash": True, "ubatch": 128},
        {"repack": False, "flash": True, "ubatch": 512},
        {"repack": False, "flash": False, "ubatch": 128},
    ],
    "openvino": [{}, {"ATTENTION_BACKEND": "SDPA"}, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 128}],
    "transformers": [{}],
}
IN_OWN_ENVIRONMENT = ("llama.cpp", "openvino")


def python_of(engine: str, options: argparse.Namespace) -> Path:
    if engine in IN_OWN_ENVIRONMENT:
        return Path(options.rivals / engine / "bin" / "python")
    return Path(options.cierzo_python)


def measure(engine: str, model: Path, setting: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """One process of one engine: its last answer, and `error` with one line when it did not come to its end."""
    worker = HERE / "rivals" / f"{engine.replace('.', '_')}_worker.py"
    fields = ("prompt", "decode", "streams", "stream_prompt", "threads", "deep")
    job = {name: getattr(options, name) for name in fields}
    job |= {"model": str(model), "small_model": str(options.small_model), "setting": setting}
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    if engine == "cierzo":
        environment = {"OMP_WAIT_POLICY": "PASSIVE"} | environment  # as its command line does
    others = OthersCpu()
    command = [str(python_of(engine, options)), str(worker), json.dumps(job | {"began": time.time()})]
    answer: dict[str, Any] = {}
    try:
        run = subprocess.run(command, capture_output=True, env=environment, timeout=options.timeout)
        output = run.stdout
        if run.returncode:
            lines = run.stderr.decode(errors="replace").strip().splitlines()
            answer["error"] = lines[-1] if lines else f"ended with status {run.returncode}"
    except subprocess.TimeoutExpired as late:
        output = late.stdout or b""
        answer["error"] = f"not done in {options.timeout:g} s"
    told = [line for line in output.splitlines(keepends=True) if line.startswith(b'{"measured"') and line[-1:] == b"\n"]
    return answer | (json.loads(told[-1]) if told else {}) | {"others_cpu": round(others.share(), 3)}


class OthersCpu:
    """The share of this machine's CPU time that other processes have taken since this object was made."""

    def __init__(self) -> None:
        self._start = self._now()

    def share(self) -> float:
        busy, all_, own = (end - start for end, start in zip(self._now(), self._start, strict=True))
        return max(0.0, busy - own) / all_

    def _now(self) -> tuple[float, float, float]:
        """Seconds of all cores: busy, all, and those of processes that were started here and have ended."""
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]
        seconds = [count / os.sysconf("SC_CLK_TCK") for count in ticks]
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return sum(seconds) - sum(seconds[3:5]), sum(seconds), used.ru_utime + used.ru_stime


def limits(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What the memory and the processor give: see bandwidth.py."""
    command = [sys.executable, str(HERE / "bandwidth.py"), "--threads", str(options.threads)]
    rates: dict[str, dict[str, float]] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return rates


def weight_bytes(model: Path) -> int:
    """Bytes of the weights that one token reads: all, but of an embedding that is not the output only a row."""
    tensors = read_header(model).tensors
    skipped = {"token_embd.weight"} if "output.weight" in tensors else set()
    return sum(
        math.prod(quant_shape_to_byte_shape(tensor.shape, GGMLQuantizationType(tensor.kind)))
        if tensor.kind > 1
        else math.prod(tensor.shape) * (4 if tensor.kind == 0 else 2)
        for name, tensor in tensors.items()
        if name not in skipped
    )


def layer_weights(model: Path) -> int:
    """Weights that every token of a prompt is multiplied with."""
    tensors = read_header(model).tensors
    return sum(math.prod(t.shape) for name, t in tensors.items() if name.startswith("blk.") and len(t.shape) > 1)


def run_rounds(model: Path, options: argparse.Namespace) -> tuple[dict[str, Result], dict[str, dict[str, float]]]:
    results = {engine: Result() for engine in options.engines}
    settings = {engine: SETTINGS[engine] for engine in options.engines}
    own: dict[str, Any] = {"cache_tokens": options.cierzo_cache} if options.cierzo_cache else {}
    settings["cierzo"] = [own]
    if options.cierzo_model:
        settings["cierzo"] = [own | {"model": str(options.cierzo_model), "mmap": mapped} for mapped in (True, False)]
    best: dict[str, dict[str, float]] = {"read": {}, "matrix": {}}
    for path in [model, *(options.cierzo_model.glob("*.safetensors") if options.cierzo_model else ())]:
        with path.open("rb") as file:  # into the page cache
            while file.read(1 << 24):
                pass
    for number in range(options.rounds):
        for kind, rates in limits(options).items():
            for way, rate in rates.items():
                best[kind][way] = max(rate, best[kind].get(way, 0.0))
        turn = number % len(options.engines)
        for engine in options.engines[turn:] + options.engines[:turn]:
            result = results[engine]
            if not python_of(engine, options).exists():
                note = {"error": f"no {python_of(engine, options)}: run benchmarks/rivals/install.sh"}
                result.samples.append({"setting": {}, **note})
                continue
            for setting in settings[engine]:
                answer = measure(engine, model, setting, options)
                result.told = {k: answer.pop(k) for k in ("versions", "flags") if k in answer} or result.told
                result.samples.append({"setting": setting, **answer})
                print(f"{number + 1}/{options.rounds} {engine} {json.dumps(result.samples[-1])}", file=sys.stderr)
            settings[engine] = result.leaders()
    return results, best


def machine(options: argparse.Namespace) -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return {
        "benchmark": "cpu",
        "date": date.today().isoformat(),
        "cpu": cpu_name(),
        "cpu_flags": info.partition("\nflags")[2].partition("\n")[0].partition(":")[2].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        **{
            k: getattr(options, k)
            for k in ("rounds", "prompt", "decode", "streams", "stream_prompt", "threads", "deep")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="a GGUF file (repeatable); the default model when left out")
    parser.add_argument("--engines", default=",".join(SETTINGS), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the long prompt")
    parser.add_argument("--decode", type=int, default=32, help="tokens decoded by each stream")
    parser.add_argument("--streams", type=int, default=16, help="streams decoded together")
    parser.add_argument("--stream-prompt", type=int, default=16, help="tokens in front of each stream")
    parser.add_argument(
        "--deep", type=int, default=0, help="tokens of a very long prompt, to be decoded after; 0 for none"
    )
    parser.add_argument("--cierzo-model", type=Path, metavar="FOLDER", help="packed, of the shape of --model's file")
    parser.add_argument(
        "--cierzo-cache", type=int, metavar="TOKENS", help="of Cierzo's cache; default: twice what is asked"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that one process may take")
    parser.add_argument("--rivals", type=Path, default=Path.home() / ".cache" / "cierzo-rivals", metavar="FOLDER")
    parser.add_argument("--cierzo-python", type=Path, default=Path(sys.executable), metavar="PYTHON")
    options = parser.parse_args()
    options.engines = options.engines.split(",")
    for engine in options.engines:
        if engine not in SETTINGS:
            sys.exit(f"error: there is no engine {engine!r}: {', '.join(SETTINGS)} are there")
    for name in ("rounds", "prompt", "decode", "streams", "stream_prompt", "threads", "timeout"):
        if getattr(options, name) < 1:
            sys.exit(f"error: --{name.replace('_', '-')} must be at least 1")
    try:
        models = [resolve_model(model, progress=True).absolute() for model in options.model or [None]]
        options.small_model = resolve_model(None, progress=True).absolute()
        sizes = [(weight_bytes(model), layer_weights(model)) for model in models]
    except CierzoError as error:
        sys.exit(f"error: {error}")
    for model, (n_bytes, n_weights) in zip(models, sizes, strict=True):
        results, best = run_rounds(model, options)
        found = {**machine(options), "model": model.name, "weight_bytes": n_bytes}
        found |= summary(results, best, n_bytes, n_weights)
        print("\n".join(table(found)))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
