"""Cierzo's server and llama.cpp's under the same load: requests a minute, tokens a second, times.

    benchmarks/rivals/install.sh                                     once
    python benchmarks/serve.py [--model 7b.gguf [--cierzo-model 7b-q4t]] [--clients 1,16,64] [--rounds 3]

Each server is started alone, answers a first request, and then meets the load of `cierzo bench serve`: prompts that it
has not seen, answers of one length (the end token is ignored). Servers take turns, round by round, so that a busy
machine disturbs both alike; a figure is the median of the rounds. llama.cpp's server is its own `llama-server`, with a
slot for each client. Prints a table and one JSON line.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path

from cierzo.cli.bench import table
from cierzo.cli.load import Figures, Load, run
from cierzo.cli.remote import RemoteLLM
from cierzo.weights.pull import resolve_model
from first_answer import cpu_name


def command(engine: str, model: Path, port: int, options: argparse.Namespace) -> list[str]:
    if engine == "cierzo":
        return [sys.executable, "-m", "cierzo", "serve", f"model={model}", "--port", str(port), "--log-level", "error"]
    slots, threads = max(options.clients), str(options.threads)
    settings = {
        "model": model, "alias": "model", "port": port, "parallel": slots, "threads": threads, "threads-batch": threads,
        "ctx-size": slots * (options.prompt + options.answer + 128), "flash-attn": "on", "chat-template": "chatml",
    }  # fmt: skip
    program = options.rivals / engine / "bin" / "llama-server"
    return [str(program), *(str(x) for name, value in settings.items() for x in (f"--{name}", value))]


@contextmanager
def server(engine: str, model: Path, options: argparse.Namespace, *extra: str) -> Iterator[str]:
    """The address of a server that is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"CIERZO_THREADS": str(options.threads)}
    log = subprocess.DEVNULL if not options.verbose else None
    child = subprocess.Popen([*command(engine, model, port, options), *extra], env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                if child.poll() is not None:
                    raise SystemExit(f"{engine} ended with status {child.returncode}: --verbose says why") from None
                time.sleep(0.2)
        yield url
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(60)


def measure(engine: str, model: Path, options: argparse.Namespace, number: int) -> list[Figures]:
    extra = {"ignore_eos": True}
    template = ["--chat-template", options.chat_template] if options.chat_template and engine == "cierzo" else []
    with server(engine, model, options, *template) as url:
        load = Load(url, RemoteLLM(url, None).name, None, options.prompt, options.answer, extra, seed=number)
        return [run(load, n, max(options.least, n * options.requests), lambda *_: None) for n in options.clients]


def median(rounds: list[Figures]) -> Figures:
    """Field by field."""
    values = [asdict(one) for one in rounds]
    middle = {name: statistics.median(v[name] for v in values) for name in values[0] if name != "errors"}
    return Figures(**middle, errors=tuple(e for one in rounds for e in one.errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF file; the default model when left out")
    parser.add_argument(
        "--cierzo-model", type=Path, help="what Cierzo runs of the same weights; `--model` when left out"
    )
    parser.add_argument("--chat-template", help="for Cierzo, where the model has none; llama.cpp takes chatml")
    parser.add_argument("--engines", default="cierzo,llama.cpp", type=lambda text: text.split(","))
    parser.add_argument("--clients", default=[1, 16, 64], type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--requests", type=int, default=2, help="of each client")
    parser.add_argument("--least", type=int, default=4, help="requests of a run at least")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--answer", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rivals", type=Path, default=Path.home() / ".cache" / "cierzo-rivals")
    parser.add_argument("--verbose", action="store_true", help="show what the servers say")
    options = parser.parse_args()
    model = options.model or resolve_model(None, progress=True)
    models = {engine: options.cierzo_model or model if engine == "cierzo" else model for engine in options.engines}
    rounds: dict[str, list[list[Figures]]] = {engine: [] for engine in options.engines}
    for number in range(options.rounds):
        for engine in options.engines:
            rounds[engine].append(measure(engine, models[engine], options, number))
            print(f"round {number + 1}, {engine}", file=sys.stderr)
    found = {engine: [median(list(same)) for same in zip(*runs, strict=True)] for engine, runs in rounds.items()}
    for engine, runs in found.items():
        print(engine, *table(runs), sep="\n")
    about = {"date": date.today().isoformat(), "cpu": cpu_name(), "rounds": options.rounds}
    about["models"] = {engine: path.name for engine, path in models.items()}
    print(json.dumps({**about, "figures": {engine: [asdict(r) for r in runs] for engine, runs in found.items()}}))


if __name__ == "__main__":
    main()
