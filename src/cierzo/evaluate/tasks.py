"""The article's benchmarks (arXiv:2310.06825, section 3), as tasks of lm-evaluation-harness.

Prompts, stop texts and metrics are the harness's own, so that scores compare with what others measure with it; the
article's pipeline was never published. Data come from the hub, or from files by `cierzo.evaluate.data`.
"""

import re
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cierzo.errors import CierzoError
from cierzo.evaluate import data
from cierzo.evaluate.sandbox import Sandbox

Config = dict[str, Any]

GROUPS = {
    "commonsense_reasoning": "Commonsense reasoning",
    "world_knowledge": "World knowledge",
    "reading_comprehension": "Reading comprehension",
    "math": "Math",
    "code": "Code",
    "aggregated": "Popular aggregated results",
}
"""The article's groups."""


@dataclass(frozen=True)
class Benchmark:
    """One row of the article's evaluation.

    Attributes:
        group: of `GROUPS`.
        shots: examples before each question, as published; of a range, all that the set's authors give.
        metric: the harness's name of what is reported.
        yamls: the harness's task files, as patterns within its folder of tasks.
        read: from the name of such a file to what reads its data.
        change: what the article does otherwise than the harness.
        local: what differs with data from files.
        note: what a score of such data is not.
        filter: the harness's name of how answers are cut out, where there are several.
        code: answers are programs, and are run.
    """

    title: str
    group: str
    shots: int | tuple[int, int]
    metric: str
    yamls: tuple[str, ...]
    read: Callable[[str], data.Reader]
    change: Config = field(default_factory=dict)
    local: Config = field(default_factory=dict)
    note: str | None = None
    filter: str = "none"
    code: bool = False


def _only(reader: data.Reader) -> Callable[[str], data.Reader]:
    return lambda stem: reader


_EXAMPLES: Config = {"fewshot_split": "examples", "fewshot_config": {"sampler": "first_n"}}

_MATH_TYPES = {
    "algebra": "Algebra",
    "counting_and_prob": "Counting & Probability",
    "geometry": "Geometry",
    "intermediate_algebra": "Intermediate Algebra",
    "num_theory": "Number Theory",
    "prealgebra": "Prealgebra",
    "precalc": "Precalculus",
}


def _math(stem: str) -> data.Reader:
    kind = _MATH_TYPES[stem.removeprefix("minerva_math_")]
    return lambda folder: {"test": [item for item in data.math(folder)["test"] if item["type"] == kind]}


def majority_math(doc: dict[str, Any], results: list[list[str]]) -> dict[str, int]:
    """Whether the answer that most of the samples give is right; answers that cannot be found do not vote."""
    from lm_eval.tasks.minerva_math import utils

    found = [utils.normalize_final_answer(utils.get_unnormalized_answer(text)) for text in results[0]]
    votes = Counter(answer for answer in found if answer != "[invalidanswer]")
    return {"exact_match": int(bool(votes) and utils.is_equiv(votes.most_common(1)[0][0], doc["answer"]))}


def _words(text: str) -> list[str]:
    plain = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def word_f1(answer: str, truth: str) -> float:
    """Overlap of words, as SQuAD measures it (arXiv:1606.05250, section 6.1), in 0..1."""
    given, right = _words(answer), _words(truth)
    same = sum((Counter(given) & Counter(right)).values())
    return 2 * same / (len(given) + len(right)) if same else float(given == right)


def best_f1(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"f1": max(word_f1(results[0], truth) for truth in doc["answers"])}


def humaneval_passes(doc: dict[str, Any], results: list[str], *, sandbox: Sandbox) -> dict[str, int]:
    """Whether prompt and answer together pass the problem's own test."""
    program = f"{doc['prompt']}{results[0]}\n{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass@1": int(sandbox.run(program).passed)}


def mbpp_passes(doc: dict[str, Any], results: list[str], *, sandbox: Sandbox) -> dict[str, int]:
    """Whether the answer passes all of the task's assertions."""
    program = "\n".join([results[0], doc["test_setup_code"], *doc["test_list"]])
    return {"pass@1": int(sandbox.run(program).passed)}


def mbpp_examples(docs: Any) -> list[dict[str, Any]]:
    """Tasks 2, 3 and 4, as the set's authors chose them; the hub's split has ten."""
    return [doc for doc in docs if doc["task_id"] in (2, 3, 4)]


_PASSES: Config = {
    "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": None,
}

BENCHMARKS = {
    "hellaswag": Benchmark(
        "HellaSwag", "commonsense_reasoning", 0, "acc_norm", ("hellaswag/hellaswag.yaml",), _only(data.hellaswag)
    ),
    "winogrande": Benchmark(
        "WinoGrande", "commonsense_reasoning", 0, "acc", ("winogrande/default.yaml",), _only(data.winogrande)
    ),
    "piqa": Benchmark("PIQA", "commonsense_reasoning", 0, "acc_norm", ("piqa/piqa.yaml",), _only(data.piqa)),
    "siqa": Benchmark(
        "SIQA",
        "commonsense_reasoning",
        0,
        "acc",
        ("siqa/siqa.yaml",),
        _only(data.siqa),
        local={"doc_to_choice": "{{choices}}", "doc_to_target": "gold"},
        note="two of the three answers",
    ),
    "openbookqa": Benchmark(
        "OpenBookQA", "commonsense_reasoning", 0, "acc_norm", ("openbookqa/openbookqa.yaml",), _only(data.openbookqa)
    ),
    "arc_easy": Benchmark(
        "ARC-e", "commonsense_reasoning", 0, "acc_norm", ("arc/arc_easy.yaml",), _only(data.arc("arc_easy"))
    ),
    "arc_challenge": Benchmark(
        "ARC-c", "commonsense_reasoning", 0, "acc_norm", ("arc/arc_challenge.yaml",), _only(data.arc("arc_challenge"))
    ),
    "commonsenseqa": Benchmark(
        "CommonsenseQA", "commonsense_reasoning", 0, "acc", ("commonsense_qa/default.yaml",), _only(data.commonsenseqa)
    ),
    "naturalquestions": Benchmark(
        "NaturalQuestions",
        "world_knowledge",
        5,
        "exact_match",
        ("nq_open/nq_open.yaml",),
        _only(data.naturalquestions),
        local=_EXAMPLES,
        note="examples of EfficientQA's development set",
        filter="remove_whitespace",
    ),
    "triviaqa": Benchmark(
        "TriviaQA",
        "world_knowledge",
        5,
        "exact_match",
        ("triviaqa/default.yaml",),
        _only(data.triviaqa),
        local=_EXAMPLES,
        note="a subset of 2,995 questions",
        filter="remove_whitespace",
    ),
    "boolq": Benchmark(
        "BoolQ", "reading_comprehension", 0, "acc", ("super_glue/boolq/default.yaml",), _only(data.boolq)
    ),
    "quac": Benchmark(
        "QuAC",
        "reading_comprehension",
        0,
        "f1",
        (),
        _only(data.quac),
        change={
            "task": "quac",
            "output_type": "generate_until",
            "validation_split": "validation",
            "doc_to_text": "Title: {{title}}\n\nBackground: {{passage}}\n\n{{dialogue}}Q: {{question}}\nA:",
            "doc_to_target": "{{answers[0]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 64, "do_sample": False},
            "metric_list": [{"metric": "f1", "aggregation": "mean", "higher_is_better": True}],
            "process_results": best_f1,
        },
        note="two dialogues with 12 questions: a fixture, no score of the set",
    ),
    "gsm8k": Benchmark(
        "GSM8K",
        "math",
        8,
        "exact_match",
        ("gsm8k/gsm8k-cot.yaml",),
        _only(data.gsm8k),
        change={
            "repeats": 8,
            # Temperature and stop texts of the harness's own self-consistency task.
            "generation_kwargs": {"until": ["Q:", "\n\n"], "do_sample": True, "temperature": 0.2},
            "filter_list": [
                {
                    "name": "maj@8",
                    "filter": [
                        {"function": "regex", "regex_pattern": r"The answer is (\-?[0-9\.\,]*[0-9]+)"},
                        {"function": "majority_vote"},
                        {"function": "take_first"},
                    ],
                }
            ],
        },
        filter="maj@8",
    ),
    "math": Benchmark(
        "MATH",
        "math",
        4,
        "exact_match",
        ("minerva_math/minerva_math_[a-z]*.yaml",),
        _math,
        change={
            "repeats": 4,
            "generation_kwargs": {"until": ["Problem:"], "do_sample": True, "temperature": 0.2},
            "filter_list": [{"name": "maj@4", "filter": [{"function": "take_first_k", "k": 4}]}],
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            "process_results": majority_math,
        },
        filter="maj@4",
    ),
    "humaneval": Benchmark(
        "HumanEval",
        "code",
        0,
        "pass@1",
        ("humaneval/humaneval.yaml",),
        _only(data.humaneval),
        change=_PASSES,
        code=True,
    ),
    "mbpp": Benchmark(
        "MBPP",
        "code",
        3,
        "pass@1",
        ("mbpp/mbpp.yaml",),
        _only(data.mbpp),
        code=True,
        change=_PASSES
        | {
            "fewshot_split": "prompt",
            "fewshot_config": {
                "sampler": "first_n",
                "process_docs": mbpp_examples,
                "doc_to_target": "{{code}}\n[DONE]",
            },
        },
        local={"fewshot_split": "examples"},
    ),
    "mmlu": Benchmark(
        "MMLU",
        "aggregated",
        5,
        "acc",
        ("mmlu/default/mmlu_*.yaml",),
        lambda stem: data.mmlu(stem.removeprefix("mmlu_")),
    ),
    "bbh": Benchmark("BBH", "aggregated", 3, "exact_match", ("bbh/fewshot/[a-z]*.yaml",), data.bbh),
    "agieval": Benchmark(
        "AGI Eval",
        "aggregated",
        (3, 5),
        "acc",
        tuple(
            f"agieval/{name}.yaml"
            for name in (
                "aqua-rat",
                "gaokao-english",
                "logiqa-en",
                "lsat-ar",
                "lsat-lr",
                "lsat-rc",
                "math",
                "sat-en-without-passage",
                "sat-en",
                "sat-math",
            )
        ),
        data.agieval,
        local=_EXAMPLES,
    ),
}
"""By name. Where a benchmark has many tasks (MMLU's subjects), its score is that of all their items together."""

ONLY_FROM_FILES = frozenset({"quac"})
"""The hub has QuAC only as a program."""

SUITES = {
    "article": tuple(BENCHMARKS),
    "quick": ("hellaswag", "arc_easy", "piqa", "winogrande", "boolq", "mmlu"),
}


def build(name: str, folder: Path | None, shots: int | None, sandbox: Sandbox | None) -> dict[str, Any]:
    """The harness's tasks of a benchmark, by name.

    Args:
        folder: of the data's files; None fetches them from the hub.
        shots: examples before each question; None for as many as published.
        sandbox: runs generated programs; None when that is not allowed.

    Raises:
        CierzoError: data, examples or permission are missing.
    """
    import lm_eval.tasks

    benchmark = BENCHMARKS[name]
    if benchmark.code and sandbox is None:
        raise CierzoError(f"{name} runs programs that the model writes: allow it with --allow-code-execution")
    if folder is None and name in ONLY_FROM_FILES:
        raise CierzoError(f"{name} can only be measured from files: give --data FOLDER")
    root = Path(lm_eval.tasks.__file__).parent
    files = sorted(file for pattern in benchmark.yamls for file in root.glob(pattern))
    built = [_task(name, benchmark, file, folder, shots, sandbox) for file in files or (None,)]
    return {str(task.task_name): task for task in built}


def _task(
    name: str, benchmark: Benchmark, file: Path | None, folder: Path | None, shots: int | None, sandbox: Sandbox | None
) -> Any:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    # The harness's own functions for programs run them without a sandbox, and load that from the hub.
    config: Config = {} if file is None else dict(load_yaml(file, resolve_func=not benchmark.code))
    config |= benchmark.change
    for unused in ("tag", "unsafe_code", "should_decontaminate", "doc_to_decontamination_query"):
        config.pop(unused, None)
    if sandbox is not None and benchmark.code:
        passes = {"humaneval": humaneval_passes, "mbpp": mbpp_passes}[name]
        config["process_results"] = partial(passes, sandbox=sandbox)
    if folder is not None:
        config |= benchmark.local
        splits = _datasets(data.read(name, benchmark.read(file.stem if file else name), folder))
        config["custom_dataset"] = lambda **ignored: splits
        config["metadata"] = {"version": (config.get("metadata") or {}).get("version", 0)}
        for key in ("training_split", "validation_split", "test_split", "fewshot_split"):
            if config.get(key) not in splits:
                config[key] = None
    if name == "agieval" and config["output_type"] == "multiple_choice":
        # A question may have several right answers; as an example it shows the first.
        config["fewshot_config"] = {**(config.get("fewshot_config") or {}), "doc_to_target": "{{gold[0]}}"}
    config["num_fewshot"] = 0
    try:
        task = ConfigurableTask(config=config)
    except (OSError, ValueError) as error:
        if folder is not None:
            raise
        source = config.get("dataset_path", name)
        raise CierzoError(f"cannot fetch {source} from the hub: {error}; give --data FOLDER") from None
    task.set_config("num_fewshot", _wanted(name, benchmark, task, shots))
    task.set_fewshot_seed(1234)
    return task


def _datasets(splits: data.Splits) -> dict[str, Any]:
    from datasets import Dataset

    return {name: Dataset.from_list(items) for name, items in splits.items()}


def _wanted(name: str, benchmark: Benchmark, task: Any, shots: int | None) -> int:
    """How many examples stand before each question."""
    config = task.config
    given = (config.fewshot_split, config.training_split, task.fewshot_cfg.samples)
    # Without any of them the harness would take the questions themselves.
    here = len(task.sampler.df) if any(source is not None for source in given) else 0
    wanted = shots
    if wanted is None:
        wanted = benchmark.shots if isinstance(benchmark.shots, int) else here
    if wanted > here:
        raise CierzoError(f"{name} has {here} examples, and {wanted} are asked for: lower --fewshot")
    return wanted
