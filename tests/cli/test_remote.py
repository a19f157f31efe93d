"""`cierzo chat --url`: the chat on a server's model."""

import subprocess
import sys
from pathlib import Path

import pytest

from cierzo import SamplingParams
from cierzo.cli.conversation import Conversation
from cierzo.cli.remote import RemoteLLM
from cierzo.errors import CierzoError
from support.models import tiny_config, tiny_engine
from support.server import served, until


def test_a_conversation_with_a_server() -> None:
    with served(tiny_engine(tiny_config(max_seq_len=512))) as server:
        llm = RemoteLLM(f"{server.url}/v1/", None)
        assert (llm.name, llm.max_seq_len) == ("tiny", 512)
        conversation = Conversation(llm, SamplingParams(max_tokens=9, seed=1, stop=("zz",)))
        deltas = list(conversation.ask("héllo"))
        said = "".join(d.text for d in deltas)
        [_, answer] = conversation.turns
        assert answer["content"] == said
        assert deltas[-1].finish_reason in ("length", "stop")
        assert conversation.last is not None
        assert conversation.last.tokens == deltas[-1].usage.completion_tokens <= 9  # type: ignore[union-attr]
        ids = server.engine.tokenizer.encode_chat(conversation.turns[:1])
        assert conversation.context_used() == len(ids) + len(said.encode())
        conversation.settings = SamplingParams(max_tokens=400)
        answering = conversation.ask("and now a long one")
        next(answering)
        answering.close()
        assert until(lambda: server.idle), "closing the iterator must end the answer"
        conversation.settings = SamplingParams(max_tokens=511)
        with pytest.raises(CierzoError, match=r"the server refused: .* maximum context length is 512"):
            list(conversation.ask("too long"))
        with pytest.raises(CierzoError, match="has no model 'other'"):
            RemoteLLM(server.url, "other")
    with pytest.raises(CierzoError, match="cannot reach the server"):
        RemoteLLM(server.url, None)
    with pytest.raises(CierzoError, match="no address"):
        RemoteLLM("localhost:8000", None)


def test_one_answer_in_a_pipe(tmp_path: Path) -> None:
    with served(tiny_engine(tiny_config())) as server:
        command = [sys.executable, "-m", "cierzo", "chat", "--url", server.url, "--max-tokens", "5"]
        result = subprocess.run(command, input="hello", capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        assert result.stdout.endswith("\n")
        refused = subprocess.run(
            [*command, "--dtype", "float32"], input="x", capture_output=True, text=True, timeout=60
        )
        assert refused.stderr.startswith("error: how a model is loaded is the server's to say")
