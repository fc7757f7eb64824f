"""A run folder of somebody else does not say which files are written: links in it are refused, what they name stays."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest

from mulcot.cli import main

CHAIN = """
run_dir: {run}
steps:
  posts: {{verb: demo-posts, set: {{out: {run}/made, train: 4, val: 2, test: 2}}}}
"""


def link(path: Path, victim: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    victim.write_text("precious")
    if kind == "symbolic":
        path.symlink_to(victim)
    else:
        os.link(victim, path)


@pytest.mark.parametrize(
    "name", [".lock", "command.key", "progress.json", "config-fit.yaml", "val-metrics.jsonl", "metrics.json"]
)
def test_a_fit_writes_through_no_link(
    chain: Path, resuming: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    stage = chain / f"linked{name.replace('.', '-')}"
    link(stage / name, tmp_path / "victim", "symbolic")
    command = resuming.fit(chain, stage.name, "--trainer.max_epochs", 1, "--data.init_args.limit", 16)
    code = resuming.run(command)
    said = capsys.readouterr().err
    assert (tmp_path / "victim").read_text() == "precious"
    if name == "val-metrics.jsonl":  # no file of a stage
        assert code == 0
    else:
        assert (code, f"{name}: is a symbolic link" in said) == (1, True)


def test_a_checkpoint_takes_the_place_of_a_link(chain: Path, resuming: ModuleType, tmp_path: Path) -> None:
    stage = chain / "linked-checkpoints"
    (tmp_path / "victim").write_text("precious")
    for name in ("best.ckpt", "sha256.json"):
        (stage / "checkpoints").mkdir(parents=True, exist_ok=True)
        (stage / "checkpoints" / name).symlink_to(tmp_path / "victim")
    resuming.run(resuming.fit(chain, stage.name, "--trainer.max_epochs", 1, "--data.init_args.limit", 16))
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
@pytest.mark.parametrize("name", [".chain.lock", "chain.json", "posts/log.txt", "posts/command.key"])
def test_a_chain_writes_through_no_link(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    file = tmp_path / "chain.yaml"
    file.write_text(CHAIN.format(run=tmp_path / "run"))
    link(tmp_path / "run" / name, tmp_path / "victim", kind)
    code = main(["run", "--config", str(file)])
    assert (tmp_path / "victim").read_text() == "precious"
    if kind == "symbolic" or name == ".chain.lock":
        assert code == 1
        assert f"{name}: is a " in capsys.readouterr().err
