"""Several processes with the whole model each (DDP): the numbers of one process, one writer for a file, no hanging."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mulcot.cli import main

pytestmark = pytest.mark.slow
ADAPTER = ("--model.init_args.lora", json.dumps({"r": 8, "alpha": 16, "dropout": 0.0}))
SHORT = ("--trainer.max_epochs", "2")


@pytest.fixture(scope="module")
def run(few_posts: Path) -> Path:
    return few_posts


def predictions(stage: Path) -> list[dict]:
    return [json.loads(line) for line in (stage / "predictions.jsonl").read_text().splitlines()]


def assert_equal_fits(ranks: ModuleType, one: Path, two: Path, steps: int) -> None:
    """The loss of each step to 1e-5, the weights at the end, and every post answered once, in the same way."""
    mine, theirs = ranks.losses(one), ranks.losses(two)
    assert mine.keys() == theirs.keys()
    assert {"loss/total", "loss/reasoning/kl", "loss/classification/ce"} <= mine.keys()
    for name, values in mine.items():
        assert len(values) == steps
        assert theirs[name] == pytest.approx(values, rel=1e-5), name
    assert mine["loss/total"][-1] < mine["loss/total"][0]
    for name, weight in ranks.weights(one).items():
        assert torch.allclose(ranks.weights(two)[name], weight, rtol=0, atol=1e-5), name
    answers, others = predictions(one), predictions(two)
    posts = [answer["post_id"] for answer in answers]
    assert len(posts) == len(set(posts)) == 7
    assert [other["post_id"] for other in others] == posts
    for answer, other in zip(answers, others, strict=True):
        assert other["reply"] == answer["reply"]
        assert other["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-5)
    scores = [json.loads((stage / "metrics.json").read_text())["val"]["classification"] for stage in (one, two)]
    assert scores[0]["posts"] == scores[1]["posts"] == 1  # so that one of the two ranks has none
    assert scores[0]["confusion"] == scores[1]["confusion"]
    assert scores[0]["ece"] == pytest.approx(scores[1]["ece"], abs=1e-5)


def test_fifty_steps_of_two_processes_are_those_of_one_and_one_of_them_writes(
    ranks: ModuleType, run: Path, fitted: Path, tmp_path: Path
) -> None:
    writes = ranks.callbacks(("Writes", {"folder": str(run), "out": str(tmp_path)}))
    ranks.call(*ranks.fit(run, "two", *ranks.FIFTY, *ranks.TWO, *writes))
    assert_equal_fits(ranks, fitted, run / "two", ranks.STEPS)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert second == []
    names = {Path(path).name for path in first}
    assert {"command.key", "config-fit.yaml", "last.ckpt", "best.ckpt", "predictions.jsonl", "manifest.json"} <= names
    events = [path.name.split(".") for path in (run / "two" / "tensorboard").glob("events.out.*")]
    assert len({process for *_, process, _ in events}) == 1  # TensorBoard does not write through Python's files


def test_twenty_steps_of_an_adapter_in_the_paired_layout(ranks: ModuleType, run: Path) -> None:
    common = ["--trainer.max_steps", 20, "--trainer.max_epochs", 9, *ADAPTER, "--data.init_args.layout", "paired"]
    assert main(ranks.fit(run, "adapter_one", *common)) == 0
    ranks.call(*ranks.fit(run, "adapter_two", *common, *ranks.TWO))
    assert_equal_fits(ranks, run / "adapter_one", run / "adapter_two", 20)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_ends_all_of_them(ranks: ModuleType, run: Path, tmp_path: Path, rank: int) -> None:
    dies = ranks.callbacks(("Dies", {"marker": str(tmp_path / "died"), "step": 1, "rank": rank}))
    shown = ranks.call(*ranks.fit(run, f"wrong{rank}", *SHORT, *ranks.TWO, *dies), code=None)
    assert f"mulcot: error: post seven is wrong on rank {rank}" in shown
    assert time.time() - (tmp_path / "died").stat().st_mtime < 60
    assert not (run / f"wrong{rank}" / "manifest.json").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_told_of_in_one_line_and_the_same_command_goes_on(
    ranks: ModuleType, run: Path, tmp_path: Path, rank: int
) -> None:
    stage = f"left_alone{rank}"
    dies = ranks.callbacks(("Dies", {"marker": str(tmp_path / "died"), "step": 4, "rank": rank, "killed": True}))
    command = ranks.fit(run, stage, *SHORT, *ranks.TWO, *dies, "--checkpoints.every_steps", 2)
    shown = ranks.call(*command, code=None if rank == 0 else 1)
    assert "Traceback" not in shown
    assert "mulcot: error: another process of this stage ended; its own message" in shown
    goes_on = ranks.call(*command)
    assert "going on from step " in goes_on
    assert f", saved in {run / stage / 'checkpoints' / 'last.ckpt'}" in goes_on


def test_a_picture_that_one_process_cannot_read_ends_both(ranks: ModuleType, run: Path) -> None:
    picture = sorted((run / "posts" / "posts" / "images").glob("train-*.png"))[0]
    content = picture.read_bytes()
    picture.write_bytes(content[:40])
    try:
        shown = ranks.call(*ranks.fit(run, "torn", *SHORT, *ranks.TWO), code=None)
    finally:
        picture.write_bytes(content)
    assert "mulcot: error:" in shown
    assert picture.name in shown


@pytest.mark.parametrize(("rank", "strategy"), [(0, "TWO"), (1, "SPREAD")])
def test_a_signal_to_one_process_ends_all_however_slowly_one_of_them_leaves(
    ranks: ModuleType, run: Path, tmp_path: Path, rank: int, strategy: str
) -> None:
    """Lightning would kill the slow one, and the first process as soon as it sees that another left with 143."""
    stage, marker = f"slow{rank}-{strategy}", tmp_path / "left"
    slow = ranks.callbacks(("LeavesSlowly", {"marker": str(marker), "rank": rank}))
    shown = ranks.call(*ranks.fit(run, stage, *SHORT, *getattr(ranks, strategy), *slow), code=143)
    assert f"mulcot: stopped by SIGTERM; step 1 is saved in {run / stage / 'checkpoints' / 'last.ckpt'}" in shown
    assert shown.count("mulcot: stopped by") == 1
    assert marker.exists()


def test_torchrun_starts_a_killed_process_again_and_the_weights_are_those_of_an_undisturbed_fit(
    ranks: ModuleType, run: Path, tmp_path: Path
) -> None:
    """Killed in the second epoch; dropout draws from generators whose states come back with the checkpoint."""
    dropout = ("--model.init_args.lora", json.dumps({"r": 8, "alpha": 16, "dropout": 0.1}))
    ranks.call(*ranks.fit(run, "undisturbed", *SHORT, *dropout, *ranks.TWO))
    dies = ranks.callbacks(("Dies", {"marker": str(tmp_path / "died"), "step": 8, "rank": 1, "killed": True}))
    command = ranks.fit(run, "killed", *SHORT, *dropout, *ranks.TWO, *dies)
    # --fresh would remove the checkpoint to go on from, were it heeded a second time.
    ranks.call(*command, "--fresh", torchrun=("--standalone", "--nproc-per-node", "2", "--max-restarts", "1"))
    assert (tmp_path / "died").exists()
    assert (run / "killed" / "manifest.json").exists()
    assert ranks.losses(run / "killed") == ranks.losses(run / "undisturbed")
    for name in ("last", "best"):
        expected, found = ranks.weights(run / "undisturbed", name), ranks.weights(run / "killed", name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_torchrun_with_another_number_of_processes_is_refused(ranks: ModuleType, run: Path) -> None:
    """Each of them would be a fit of its own that writes the same files."""
    shown = ranks.call(*ranks.fit(run, "alone"), torchrun=("--standalone", "--nproc-per-node", "2"), code=1)
    assert "torchrun started 2 processes and trainer.devices x trainer.num_nodes is 1" in shown
    assert not (run / "alone").exists()
