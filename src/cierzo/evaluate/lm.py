"""Our engine as a model of lm-evaluation-harness (`lm_eval`), registered as `cierzo`."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from cierzo.engine import SamplingParams
from cierzo.errors import CierzoError
from cierzo.evaluate.journal import Journal
from cierzo.llm import LLM
from cierzo.progress import progress_bar

_CHAT = "\x00chat "
"""Begins a prompt that is a conversation: token ids come from the model's template, never from a text of it."""
_BATCH = 64
"""Requests that go to the engine at once; what is answered is in the journal before the next."""
BLOCK_SIZE = 4
"""Tokens of a block of the cache. Questions are short and differ early: small blocks share more of their beginnings."""
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@register_model("cierzo")
class CierzoLM(LM):  # type: ignore[misc]
    """Scores and answers what the harness's tasks ask. Its `batch_size` is not needed: the engine batches by itself.

    What begins alike is computed once: requests go to the engine sorted by their tokens, and its prefix cache keeps
    few-shot examples and questions. Texts longer than the model's context lose their beginning, as the harness's own
    models do it; `truncated` counts them.

    Args:
        pretrained: a model as `cierzo.LLM` takes it, or one that is loaded, best with blocks of `BLOCK_SIZE`.
        add_bos: begin texts with the begin-of-text token; None leaves it to the model's tokenizer.
        max_length: longest text, in tokens; the model's own limit when None.
        seed: of sampled answers; each prompt and each of its repeats draws from its own.
        journal: where answers are kept, so that a run that was killed goes on.
        load: further `cierzo.LoadOptions`, by name.
    """

    def __init__(
        self,
        pretrained: str | Path | LLM | None = None,
        *,
        add_bos: bool | None = None,
        max_length: int | None = None,
        seed: int = 0,
        journal: Journal | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: str | None = None,
        **load: Any,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, LLM):
            self.llm = pretrained
        else:
            options: dict[str, Any] = {"block_size": BLOCK_SIZE, "max_seq_len": max_length, **load}
            self.llm = LLM(pretrained, device=device or "auto", progress=True, **options)
        self.tokenizer = self.llm.tokenizer
        self.add_bos = add_bos is not False
        if add_bos and self.tokenizer.bos_id is None:
            raise CierzoError("add_bos: this model's texts begin with no begin-of-text token")
        self.seed, self.journal = seed, journal
        self.truncated = 0

    @property
    def tokenizer_name(self) -> str:
        return self.llm.name

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "the model's own" if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return _CHAT + json.dumps({"messages": chat_history, "answer": add_generation_prompt})

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each continuation: its tokens' log-probabilities in sum, and whether all of them are the likeliest."""
        return self._scored([self._pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, every token once; those longer than the context in pieces, each after one token before it."""
        windows = [list(self._windows(*request.args)) for request in requests]
        scores = iter(self._scored([pair for pairs in windows for pair in pairs]))
        return [sum(next(scores)[0] for _ in pairs) for pairs in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers up to a stop text; of repeated requests, sampled ones differ by their seeds."""
        repeats: Counter[str] = Counter()
        asked: dict[str, tuple[list[int], SamplingParams]] = {}
        keys = []
        for request in requests:
            prompt, settings = request.args
            text = json.dumps([prompt, settings], sort_keys=True)
            key = _key("generate", [text, repeats[text]])
            repeats[text] += 1
            if key not in asked:
                asked[key] = self._question(prompt, settings, int(key[:8], 16))
            keys.append(key)

        def answers(chosen: Sequence[str]) -> list[str]:
            prompts, params = zip(*(asked[key] for key in chosen), strict=True)
            return [answer.text for answer in self.llm.generate(list(prompts), list(params))]

        return self._all(keys, lambda key: asked[key][0], answers, "answers")

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt: plain text, or a conversation as `apply_chat_template` spells it."""
        if not text.startswith(_CHAT):
            return self.tokenizer.encode(text, bos=self.add_bos)
        chat = json.loads(text.removeprefix(_CHAT))
        messages, begun = chat["messages"], []
        if not chat["answer"]:  # the last message is the beginning of the answer
            begun = self.tokenizer.encode(messages[-1]["content"])
            messages = messages[:-1]
        return self.tokenizer.encode_chat(messages) + begun

    @property
    def prefix_token_id(self) -> int:
        """What a text stands after where nothing is before it: the begin-of-text token, or else the end of another."""
        bos = self.tokenizer.bos_id
        return min(self.tokenizer.stop_ids) if bos is None else bos

    @property
    def _longest(self) -> int:
        return self.llm.max_seq_len or 2**31

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of both, cut where the tokens of the context alone end (spaces belong to the continuation)."""
        if not context:
            return [self.prefix_token_id], self.tokenizer.encode(continuation)
        if context.startswith(_CHAT):
            return self.encode(context), self.tokenizer.encode(continuation)
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        whole, before = self.encode(context + continuation), self.encode(context)
        return whole[: len(before)], whole[len(before) :]

    def _windows(self, text: str) -> Iterable[tuple[list[int], list[int]]]:
        return map(
            make_disjoint_window,
            get_rolling_token_windows(
                token_list=self.encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._longest - 1,
                context_len=1,
            ),
        )

    def _scored(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        texts: dict[str, tuple[list[int], int]] = {}
        keys = []
        for context, continuation in pairs:
            if not continuation:
                raise CierzoError("a task asks for the probability of an empty text")
            key = _key("score", [context, continuation])
            ids = self._cut(context + continuation, self._longest, counted=key not in texts)
            first = len(ids) - len(continuation)
            if first < 1:
                raise CierzoError(f"a continuation of {len(continuation)} tokens passes the limit of {self._longest}")
            texts[key] = ids, first
            keys.append(key)

        def answers(chosen: Sequence[str]) -> list[tuple[float, bool]]:
            ids, firsts = zip(*(texts[key] for key in chosen), strict=True)
            scores = self.llm.score(list(ids), top=1, first=list(firsts))
            return [
                (sum(token.logprob for token in tokens), all(token.token_id == token.top[0][0] for token in tokens))
                for tokens in scores
            ]

        found: list[list[Any]] = self._all(keys, lambda key: texts[key][0], answers, "scores")
        return [(logprob, greedy) for logprob, greedy in found]

    def _question(self, prompt: str, settings: dict[str, Any], number: int) -> tuple[list[int], SamplingParams]:
        """A prompt's tokens and how to answer, from the harness's settings, which are Hugging Face's by name."""
        left = dict(settings)
        stop, longest = left.pop("until", []), int(left.pop("max_gen_toks", 256))
        if not left.pop("do_sample", left.get("temperature", 0) > 0):
            left["temperature"] = 0.0
        chosen = {name: left.pop(name) for name in _SAMPLING if name in left}
        if left:
            raise CierzoError(f"a task asks for {', '.join(left)} when generating, which is not known here")
        ids = self._cut(self.encode(prompt), self._longest - longest, counted=True)
        stop = tuple(text for text in ([stop] if isinstance(stop, str) else stop) if text)
        return ids, SamplingParams(max_tokens=longest, stop=stop, seed=self.seed + number, **chosen)

    def _cut(self, ids: list[int], longest: int, *, counted: bool) -> list[int]:
        if longest < 1:
            raise CierzoError(f"the context of {self._longest} tokens has no room for such an answer")
        self.truncated += counted and len(ids) > longest
        return ids[-longest:]

    def _all(
        self,
        keys: list[str],
        tokens: Callable[[str], list[int]],
        answers: Callable[[Sequence[str]], Sequence[Any]],
        unit: str,
    ) -> list[Any]:
        """The answer to each key, computed in the order of their tokens where the journal has it not."""
        known = {} if self.journal is None else self.journal.answers
        found = {key: known[key] for key in keys if key in known}
        missing = sorted({key for key in keys if key not in found}, key=tokens)
        with progress_bar("evaluating", unit=unit) as report:
            for start in range(0, len(missing), _BATCH):
                report(start, len(missing))
                chosen = missing[start : start + _BATCH]
                for key, answer in zip(chosen, answers(chosen), strict=True):
                    found[key] = answer
                    if self.journal is not None:
                        self.journal.add(key, answer)
        return [found[key] for key in keys]


def _key(kind: str, parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps([kind, *parts]).encode()).hexdigest()
