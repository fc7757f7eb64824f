"""The endpoint teacher against a server that we did not write: `transformers serve`, offline, on the CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from data_modules.readers import Table
from mulcot.cli import main
from mulcot.teachers import OpenAITeacher
from mulcot.types import Post
from stages import TeacherStage

pytestmark = pytest.mark.slow

PATIENCE: Final = 300.0
"""Seconds for a server to start or to answer, on a machine that has other things to do."""
READY: Final = re.compile(r"Uvicorn running on (http://127\.0\.0\.1:\d+)")
QUIET: Final = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu")


@contextmanager
def served(model: Path, folder: Path) -> Iterator[str]:
    """`transformers serve` with one model; gives the endpoint's base URL. Its log is `<folder>/server.log`."""
    log = folder / "server.log"
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",  # the command would ask PyPI for a newer version of itself
        "HF_HOME": str(folder / "huggingface"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model)]
    options = ["--host", "127.0.0.1", "--port", "0", "--device", "cpu"]
    with log.open("wb") as output:
        server = subprocess.Popen([*command, *options], stdout=output, stderr=output, env=environment, cwd=folder)
    try:
        yield address_in(log, server) + "/v1"
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def address_in(log: Path, server: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and server.poll() is None:
        found = READY.search(log.read_text(errors="replace"))
        if found:
            return found[1]
        time.sleep(0.1)
    pytest.fail(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_a_model_that_knows_nothing_is_refused_reply_by_reply(
    embedded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = embedded / "models" / "student"
    overlay = tmp_path / "served.yaml"
    with served(model, tmp_path) as url:
        given = {"base_url": url, "model": str(model), "api_key_env": None, "max_tokens": 32, "deadline": PATIENCE}
        overlay.write_text(yaml.safe_dump({"model": {"init_args": {"teacher": {"init_args": given}}}}))
        configs = ["teacher.yaml", "teachers/openai.yaml", str(overlay)]
        options = ["--run_dir", str(embedded), "--stage", "served", "--model.init_args.max_reasks", "1", "--yes"]
        code = main(["predict", *(part for config in configs for part in ("--config", config)), *options, *QUIET])
    output = capfd.readouterr()
    assert code == 0, output.err
    stage = embedded / "served"
    splits = json.loads((stage / "metrics.json").read_text())["splits"]
    for split, count in (("train", 48), ("val", 12), ("test", 12)):
        assert splits[split]["failed"] == {"malformed": count}
        assert splits[split]["requests"] == 2 * count
        assert splits[split]["completion_tokens"] > 2 * count
        assert lines(stage / f"rationales-{split}.jsonl") == []
        rejects = lines(stage / f"rejects-{split}.jsonl")
        assert len({reject["post_id"] for reject in rejects}) == count
        assert any(reject["reply"] for reject in rejects), "the raw replies are kept"
    print(output.err[-2000:], output.out[-2000:])
    assert "malformed" in output.err + output.out, "the summary at the end says why posts failed"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the demo's assistant, on fewer posts: about a minute, and right about two of three posts."""
    run = tmp_path_factory.mktemp("trained") / "run"
    corpus = f'["{run}/teacher/rationales-train.jsonl", "{run}/posts/posts/train.jsonl"]'
    for command in (
        ("demo-posts", "--out", str(run / "posts"), "--train", "400", "--val", "12", "--test", "30"),
        ("predict", "--config", "teacher.yaml", "--run_dir", str(run), *QUIET),
        ("tiny-models", "--out", str(run / "models"), "--corpus", corpus),
        (
            *("fit", "--config", "assistant.yaml", "--run_dir", str(run), "--test_after_fit", "false", *QUIET),
            *("--trainer.max_epochs", "4"),
        ),
    ):
        assert main(list(command)) == 0
    return run


class Posts(LightningDataModule):
    """The posts of one split."""

    predict_splits = ("test",)

    def __init__(self, posts: list[Post]) -> None:
        super().__init__()
        self.posts = posts

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        return [DataLoader(self.posts, batch_size=8, collate_fn=list)]  # type: ignore[arg-type]


def test_of_the_trained_assistant_more_than_half_is_accepted(trained: Path, tmp_path: Path) -> None:
    model = trained / "assistant" / "model"
    data = trained / "posts" / "posts"
    posts = list(Table({"test": data / "test.jsonl"}, data / "images").read("test"))
    with served(model, tmp_path) as url:
        teacher = OpenAITeacher(
            url, str(model), api_key_env=None, temperature=0.0, max_tokens=160, deadline=PATIENCE, concurrency=4
        )
        stage = TeacherStage(teacher, tmp_path / "stage", max_reasks=0, prompt="trained")
        stage.yes = True
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.predict(stage, datamodule=Posts(posts))
    counts = json.loads((tmp_path / "stage" / "metrics.json").read_text())["splits"]["test"]
    print(counts)
    accepted = lines(tmp_path / "stage" / "rationales-test.jsonl")
    assert counts["posts"] == 30
    assert len(accepted) == counts["accepted_predicted"] + counts["accepted_explained"] > 15
    gold = {post.id: post.label for post in posts}
    assert all(record["rationale"]["Prediction"] == gold[record["post_id"]] for record in accepted)
    assert all(record["model"] == str(model) and record["completion_tokens"] > 30 for record in accepted)
