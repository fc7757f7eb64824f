"""What many tests share: tiny models, a few generated posts, and one finished chain."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mulcot.cli import main

CHECKOUT = Path(__file__).resolve().parents[1]
SHARED = CHECKOUT.parent / "shared" / "data"

# Small enough for a test, large enough that every part of the chain has something to do.
POSTS = ["--train", "48", "--val", "12", "--test", "12"]
QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]


def run(*args: object) -> None:
    """Runs one verb in this process and insists that it succeeds."""
    assert main([str(arg) for arg in args]) == 0


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real posts beside the checkout; tests that need them are skipped where they are absent."""
    if not SHARED.is_dir():
        pytest.skip("the real data is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def fault_server() -> ModuleType:
    """The module tests/fault_server.py: an endpoint that fails on purpose."""
    return _module("fault_server")


@pytest.fixture(scope="session")
def architectures() -> ModuleType:
    """The module tests/architectures.py: a tiny model of every architecture that takes the shared layout."""
    return _module("architectures")


@pytest.fixture(scope="session")
def ranks() -> ModuleType:
    """The module tests/ranks.py: several processes, and what they leave."""
    return _module("ranks")


@pytest.fixture(scope="session")
def few_posts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory like `embedded`, with numbers of posts that two processes cannot share evenly."""
    folder = tmp_path_factory.mktemp("few") / "run"
    run("demo-posts", "--out", folder / "posts", "--train", "48", "--val", "1", "--test", "7")
    run("predict", "--config", "teacher.yaml", "--run_dir", folder, "--trainer.enable_progress_bar", "false")
    corpus = f'["{folder}/teacher/rationales-train.jsonl", "{folder}/posts/posts/train.jsonl"]'
    run("tiny-models", "--out", folder / "models", "--corpus", corpus)
    return folder


@pytest.fixture(scope="session")
def fitted(few_posts: Path, ranks: ModuleType) -> Path:
    """The stage of a fit of fifty steps by one process."""
    run(*ranks.fit(few_posts, "one", *ranks.FIFTY))
    return few_posts / "one"


def _module(name: str) -> ModuleType:
    """A module of this folder, which is no package to import from."""
    folder = str(CHECKOUT / "tests")
    sys.path.append(folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with generated posts, the teacher's rationales and the pair of tiny models."""
    folder = tmp_path_factory.mktemp("embedded") / "run"
    run("demo-posts", "--out", folder / "posts", *POSTS)
    run("predict", "--config", "teacher.yaml", "--run_dir", folder, "--trainer.enable_progress_bar", "false")
    corpus = f'["{folder}/teacher/rationales-train.jsonl", "{folder}/posts/posts/train.jsonl"]'
    run("tiny-models", "--out", folder / "models", "--corpus", corpus)
    return folder


@pytest.fixture(scope="session")
def chain(embedded: Path) -> Path:
    """The same run directory after assistant, augmentation, soft labels and student, each trained for a few steps."""
    common = ["--run_dir", embedded, *QUICK]
    logged = ["--trainer.log_every_n_steps", "1"]
    run("fit", "--config", "assistant.yaml", "--trainer.max_epochs", "1", *logged, *common)
    run("predict", "--config", "augment.yaml", "--model.init_args.max_new_tokens", "24", *common)
    run("predict", "--config", "soft_labels.yaml", *common)
    run(
        *("fit", "--config", "student.yaml", "--trainer.max_epochs", "2"),
        *("--model.init_args.max_new_tokens", "24", *logged, *common),
    )
    return embedded


@pytest.fixture(scope="session")
def other_tokenizer(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An assistant whose tokenizer was trained on the posts alone, with fewer entries."""
    folder = tmp_path_factory.mktemp("models") / "other"
    run("tiny-models", "--out", folder, "--corpus", f'["{embedded}/posts/posts/train.jsonl"]', "--vocab_size", "700")
    return folder / "assistant"
