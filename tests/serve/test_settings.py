"""Flags, environment and file say the same things; `cierzo serve` refuses what is unsafe or wrong."""

import os
import socket
import stat
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from cierzo.errors import CierzoError
from cierzo.serve.auth import find, new_key, read_keys
from cierzo.serve.settings import Settings, options, printed, settings_from

EVERY = {name: None for name, _, _ in options()}


def cierzo_serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cierzo", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)


def test_flags_go_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("port: 1\nmax_n: 2\nhost: '::1'\nmodels: [a.gguf, b=c.gguf]\ncors_origins: []\n")
    variables = {
        "CIERZO_PORT": "3",
        "CIERZO_MAX_N": "4",
        "CIERZO_ALLOWED_HOSTS": "a.example, b.example",
        "CIERZO_ISA": "x",
    }
    settings = settings_from({**EVERY, "port": 5}, config, variables)
    assert (settings.port, settings.max_n, settings.host) == (5, 4, "::1")
    assert settings.allowed_hosts == ["a.example", "b.example"]
    assert settings.sources == {"a": "a.gguf", "b": "c.gguf"}
    assert settings_from(EVERY, None, {}) == Settings()


def test_what_is_printed_is_a_file_that_says_the_same(tmp_path: Path) -> None:
    settings = Settings(models=["x=y"], port=7, keep=1.5, log_prompts=True, cors_origins=["https://a"])
    config = tmp_path / "serve.yaml"
    config.write_text(printed(settings))
    assert settings_from(EVERY, config, {}) == settings


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot: 1", "did you mean 'port'"),
        ("port: many", "port: Input should be a valid integer"),
        ("port: 70000", "port must be from 0 to 65535"),
        ("max_n: 0", "max_n must be at least 1"),
        ("request_timeout: .nan", "request_timeout must be"),
        ("log_level: loud", "log_level must be"),
        ("- a", "settings are lines"),
        ("a: [", "cannot read the settings"),
        ("models: [a=b, a=c]", "two models are called 'a'"),
        ("models: ['=x']", "neither a model nor NAME=MODEL"),
    ],
)
def test_wrong_files_are_told(tmp_path: Path, text: str, told: str) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(text)
    with pytest.raises(CierzoError, match=told.replace("[", r"\[")) as caught:
        assert settings_from(EVERY, config, {}).sources
    assert "\n" not in str(caught.value)


def test_every_setting_is_a_flag_and_has_help() -> None:
    shown = cierzo_serve("--help", COLUMNS="200", TERM="dumb").stdout
    for name, _, said in options():
        assert name == "models" or f"--{name.replace('_', '-')}" in shown
        assert said.help.endswith(".")


def test_print_config_shows_what_is_meant() -> None:
    result = cierzo_serve("--print-config", "--port", "9", "one.gguf", CIERZO_MAX_BODY="2048")
    values = yaml.safe_load(result.stdout)
    assert values == {**values, "port": 9, "max_body": 2048, "models": ["one.gguf"], "host": "127.0.0.1"}
    assert set(values) == set(EVERY)
    wrong = cierzo_serve("--print-config", CIERZO_MAX_BODY="big")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: CIERZO_MAX_BODY: ")


def test_nobody_opens_a_server_to_everybody_by_accident() -> None:
    result = cierzo_serve("--host", "0.0.0.0")
    assert result.returncode == 1
    assert "--allow-public" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = cierzo_serve("--port", str(taken.getsockname()[1]), "no-such-model.gguf")
    assert result.returncode == 1
    assert "choose another --port" in result.stderr


def test_a_missing_model_is_told() -> None:
    result = cierzo_serve("--port", "0", "no-such-model.gguf")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: there is no model 'no-such-model.gguf'")


def test_keys_are_hashed_where_they_lie(tmp_path: Path) -> None:
    key, line = new_key("ann")
    file = tmp_path / "keys"
    file.write_text(f"# who may ask\n\n{line}\n{new_key('bob')[1]}\n")
    file.chmod(stat.S_IRUSR)
    assert key not in file.read_text()
    keys = read_keys(str(file), "an environment's key")
    assert [k.name for k in keys] == ["environment", "ann", "bob"]
    found = find(keys, key.encode())
    assert found is not None
    assert found.name == "ann"
    assert find(keys, key.encode()[:-1]) is None
    assert find(keys, sha256(key.encode()).hexdigest().encode()) is None
    result = cierzo_serve("--new-key", "carl")
    given, written = (text.split(": ", 1)[1].strip() for text in result.stdout.splitlines())
    assert written == f"carl sha256:{sha256(given.encode()).hexdigest()}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no keys"),
        ("sk-clear", "line 1: not"),
        ("a sha256:00", "line 1: not"),
        (f"a sha256:{'0' * 64}\n" * 2, "line 2: there is another"),
    ],
)
def test_wrong_key_files_are_told(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(CierzoError, match=told):
        read_keys(str(file), None)
    with pytest.raises(CierzoError, match="cannot read the keys"):
        read_keys(str(tmp_path / "none"), None)
    with pytest.raises(CierzoError, match="could be guessed"):
        read_keys(None, "short")
    with pytest.raises(CierzoError, match="no name for a key"):
        new_key("a b")
