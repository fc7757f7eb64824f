"""A canary key: labelling through an endpoint leaves it nowhere, in no spelling, whatever happens."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import quote

import pytest

from mulcot.cli import main

KEY = "sk-canary/7Q+x.Zz=9-not-a-real-one"
OVERLAY = """
model:
  init_args:
    teacher:
      class_path: mulcot.teachers.OpenAITeacher
      init_args: {base_url: "%s", model: fault-model, max_pixels: null, max_retries: 1, max_backoff: 0.01}
"""


def spellings() -> list[bytes]:
    """The key as it is, quoted as in an address, and in base64, alone and as the header has it, at every offset."""
    found = [KEY, quote(KEY, safe=""), quote(KEY), repr(KEY)[1:-1]]
    for text in (KEY, f"Bearer {KEY}", f" {KEY}", f"  {KEY}"):
        # What stands around a text changes the first and last letters of its base64.
        found.append(base64.b64encode(text.encode()).decode()[4:-4])
        found.append(base64.urlsafe_b64encode(text.encode()).decode()[4:-4])
    return [spelling.encode() for spelling in found]


def told(text: bytes) -> list[bytes]:
    return [spelling for spelling in spellings() if spelling in text]


@pytest.fixture
def overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault_server: ModuleType) -> Iterator[Path]:
    """An overlay for a server that takes the canary alone, and fails some posts in ways whose errors quote a lot."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    faults = {"500": 0.1, "429": 0.1, "html": 0.1, "reset-inside": 0.05, "label-outside": 0.1, "400": 0.05}
    with fault_server.in_thread(faults=faults, key=KEY) as server:
        path = tmp_path / "mine.yaml"
        path.write_text(OVERLAY % server.url)
        yield path


def label(embedded: Path, overlay: Path, stage: str) -> int:
    given = ["--config", "teacher.yaml", "--config", str(overlay), "--run_dir", str(embedded), "--stage", stage]
    limit = ["--data.init_args.limit", "8"]
    return main(["predict", *given, *limit, "--yes", "--debug", "--trainer.enable_progress_bar", "false"])


def test_the_detector_detects() -> None:
    assert told(f"x{KEY}x".encode())
    for around in ("", "a", "ab"):
        assert told(base64.b64encode(f"{around}Authorization: Bearer {KEY} and more".encode()))
    assert told(quote(f"key={KEY}", safe="").encode())
    assert not told(b"sk-canary")


def test_a_key_is_left_nowhere(
    embedded: Path,
    overlay: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    assert label(embedded, overlay, "canary") == 0
    assert (embedded / "canary" / "manifest.json").is_file()
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "x")  # refused by the server, which may quote it
    assert label(embedded, overlay, "canary_refused") == 1
    shown = capfd.readouterr()
    texts = {"stdout": shown.out, "stderr": shown.err, "log": caplog.text}
    found = {name: told(text.encode()) for name, text in texts.items() if told(text.encode())}
    for stage in ("canary", "canary_refused"):
        for path in (embedded / stage).rglob("*"):
            if path.is_file() and told(path.read_bytes()):
                found[str(path)] = told(path.read_bytes())
    assert found == {}
    assert "Traceback" in texts["stderr"], "with --debug the refusal was shown whole"
    own = Path(f"/proc/{os.getpid()}/cmdline").read_bytes()
    assert not told(own)


def test_a_key_written_into_the_yaml_is_refused_and_not_echoed(
    embedded: Path, overlay: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    overlay.write_text(overlay.read_text().replace("model: fault-model", f'model: fault-model, api_key_env: "{KEY}"'))
    assert label(embedded, overlay, "canary_written") == 1
    shown = capfd.readouterr()
    assert "api_key_env" in shown.err
    assert not told((shown.out + shown.err).encode())


CHAIN = """
run_dir: {run}
steps:
  teacher:
    verb: predict
    config: teacher.yaml
    set: {{model.init_args.teacher: {{class_path: OpenAITeacher, init_args: {given}}}}}
"""
SPELT = {
    "a user of an address": f'{{base_url: "https://u:{KEY[:9]}@h/v1"}}',
    "a query of an address": f'{{base_url: "https://h/v1?key={KEY[:9]}"}}',
    "a key for its variable": f'{{api_key_env: "{KEY}"}}',
    "a list for its variable": f'{{api_key_env: ["{KEY}"]}}',
    "the value of a variable": f'{{model: "{KEY}"}}',
}


@pytest.mark.parametrize("name", SPELT)
@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["run", "dry-run"])
def test_a_chain_that_holds_a_key_writes_and_shows_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str, options: list[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    file = tmp_path / "chain.yaml"
    file.write_text(CHAIN.format(run=tmp_path / "run", given=SPELT[name]))
    assert main(["run", "--config", str(file), *options]) == 1
    shown = capfd.readouterr()
    assert "steps.teacher: model.init_args.teacher.init_args." in shown.err
    assert KEY[:9] not in shown.out + shown.err
    assert list(tmp_path.rglob("*")) == [file]


@pytest.mark.parametrize(
    "given", ["{api_key_env: [%s]}", "{api_key_env: {a: %s}}", "[%s]", '{model: "${oc.env:OPENAI_API_KEY}"}']
)
def test_a_key_in_another_place_of_the_yaml_is_not_repeated_either(
    embedded: Path, overlay: Path, capfd: pytest.CaptureFixture[str], given: str
) -> None:
    given = given.replace("%s", f'"{KEY}"')
    overlay.write_text(OVERLAY.partition("init_args: {base_url")[0] + f"init_args: {given}\n")
    assert label(embedded, overlay, "canary_elsewhere") == 1
    shown = capfd.readouterr()
    assert "mulcot: error: " in shown.err
    assert not told((shown.out + shown.err.partition("mulcot: error: ")[2]).encode())
    stage = embedded / "canary_elsewhere"
    assert not [path for path in stage.rglob("*") if path.is_file() and told(path.read_bytes())]
