"""What is counted, for Prometheus; by vLLM's names where one fits, so that its dashboards work."""

from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from cierzo import AsyncLLM
from cierzo.engine import Histogram, Metrics
from cierzo.guard import Guard
from cierzo.serve.state import State

_Value = Callable[[Metrics], float]
_GAUGES: dict[str, tuple[str, _Value]] = {
    "vllm:num_requests_running": ("Answers that are being computed.", lambda m: m.running),
    "vllm:num_requests_waiting": ("Answers that wait for their turn.", lambda m: m.waiting),
    "vllm:kv_cache_usage_perc": (
        "Part of the cache's blocks that is held, 0 to 1.",
        lambda m: 1 - m.free_blocks / m.blocks,
    ),
    "cierzo:cache_blocks": ("Blocks of the cache.", lambda m: m.blocks),
    "cierzo:cache_blocks_free": ("Blocks that no answer holds.", lambda m: m.free_blocks),
    "cierzo:cache_blocks_named": ("Blocks that a later prompt can find again.", lambda m: m.named_blocks),
}
_COUNTERS: dict[str, tuple[str, _Value]] = {
    "vllm:prompt_tokens": ("Tokens of prompts.", lambda m: m.prompt_tokens),
    "vllm:generation_tokens": ("Tokens of answers.", lambda m: m.generated_tokens),
    "vllm:prefix_cache_queries": ("Tokens of prompts that were looked for in the cache.", lambda m: m.prompt_tokens),
    "vllm:prefix_cache_hits": ("Tokens of prompts that were found there.", lambda m: m.cached_tokens),
    "vllm:num_preemptions": ("Times that an answer gave its blocks to another.", lambda m: m.preemptions),
    "cierzo:steps": ("Steps of the model.", lambda m: m.steps),
}
_HISTOGRAMS: dict[str, tuple[str, Callable[[Metrics], Histogram]]] = {
    "vllm:time_to_first_token_seconds": ("From a request to its first token.", lambda m: m.time_to_first_token),
    "vllm:inter_token_latency_seconds": ("Between tokens of an answer.", lambda m: m.time_between_tokens),
    "vllm:e2e_request_latency_seconds": ("From a request to its end.", lambda m: m.request_time),
    "vllm:iteration_tokens_total": ("Tokens of a step.", lambda m: m.step_tokens),
    "cierzo:step_seconds": ("Time of a step.", lambda m: m.step_time),
}


class _Collector(Collector):
    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        loaded = {e.name: e.llm for e in self._state.models.entries.values() if e.llm is not None}
        for name, (help_, value) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, help_, labels=["model_name"])
            for model, llm in loaded.items():
                gauge.add_metric([model], value(llm.metrics))
            yield gauge
        for name, (help_, value) in _COUNTERS.items():
            counter = CounterMetricFamily(name, help_, labels=["model_name"])
            for model, llm in loaded.items():
                counter.add_metric([model], value(llm.metrics))
            yield counter
        for name, (help_, histogram) in _HISTOGRAMS.items():
            family = HistogramMetricFamily(name, help_, labels=["model_name"])
            for model, llm in loaded.items():
                _add(family, model, histogram(llm.metrics))
            yield family
        yield _finished(loaded)
        yield from _http(self._state)
        if self._state.guard is not None:
            yield from _guard(self._state.guard)


def _add(family: HistogramMetricFamily, model: str, histogram: Histogram) -> None:
    bounds = [*map(str, histogram.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
    family.add_metric([model], buckets, histogram.sum)


def _finished(loaded: dict[str, AsyncLLM]) -> Metric:
    family = CounterMetricFamily(
        "vllm:request_success",
        "Answers that ended, by reason; the guard's questions to a model count too.",
        labels=["model_name", "finished_reason"],
    )
    for model, llm in loaded.items():
        for reason, count in list(llm.metrics.finished.items()):  # the engine goes on meanwhile
            family.add_metric([model, reason], count)
    return family


def _http(state: State) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "cierzo:http_requests_in_hand", "Requests being read, waiting or answered.", value=state.in_hand[""]
    )
    answered = CounterMetricFamily("cierzo:http_requests", "Requests by path and status.", labels=["path", "status"])
    for (path, status), count in state.answered.items():
        answered.add_metric([path, str(status)], count)
    yield answered
    refused = CounterMetricFamily("cierzo:http_refused", "Requests that were refused at the gate.", labels=["code"])
    for code, count in state.refused.items():
        refused.add_metric([code], count)
    yield refused


def _guard(guard: Guard) -> Iterator[Metric]:
    labels = {"policy": guard.policy.name, "mode": guard.mode}
    verdicts = CounterMetricFamily(
        "cierzo:guard_verdicts", "Texts that were judged, by what the policy says.",
        labels=[*labels, "stage", "action"],
    )  # fmt: skip
    for (stage, action), count in list(guard.verdicts.items()):
        verdicts.add_metric([*labels.values(), stage, action], count)
    yield verdicts
    for name, about, value in (
        ("errors", "Texts that could not be judged.", guard.errors),
        ("reflections", "Times that a model was asked.", guard.reflections),
        ("seconds", "Time that judging took, with waiting for the model.", guard.seconds),
    ):
        family = CounterMetricFamily(f"cierzo:guard_{name}", about, labels=list(labels))
        family.add_metric(list(labels.values()), value)
        yield family


def exposition(state: State) -> tuple[bytes, str]:
    """The text, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(state))
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4
