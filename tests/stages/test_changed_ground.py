"""What a fit goes on upon: the ground that it was begun on, a good checkpoint, a folder of its own, finite numbers."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import threading
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tensorboard.summary.writer.record_writer import RecordWriter

from mulcot.locks import locked
from mulcot.models import refuse_diverged
from mulcot.types import InputError

# -- changed ground -----------------------------------------------------------------------------------------------

CHANGES: list[tuple[str, list[object], str]] = [
    ("seed", ["--seed_everything", 3], "seed_everything was 0, is 3"),
    ("batch", ["--data.init_args.posts_per_step", 6], "data.init_args.posts_per_step was 4, is 6"),
    ("batch", ["--trainer.accumulate_grad_batches", 1], "trainer.accumulate_grad_batches was 2, is 1"),
    ("data", ["--data.init_args.limit", 40], "data.init_args.limit was none, is 40"),
    ("data", ["--data.init_args.rationales_per_post", 2], "data.init_args.rationales_per_post was 1, is 2"),
    ("precision", ["--trainer.precision", "bf16-mixed"], "trainer.precision was 32-true, is bf16-mixed"),
    ("losses", ["--model.init_args.lambda_soft", 0.5], "model.init_args.lambda_soft was 0.3, is 0.5"),
    ("losses", ["--losses.kl", "null"], "losses.kl.class_path was"),
    ("optimizer", ["--model.init_args.optimizer.learning_rate", 0.001], "learning_rate was 0.004, is 0.001"),
    ("schedule", ["--trainer.max_epochs", 3], "trainer.max_epochs was 2, is 3"),
]


@pytest.mark.parametrize(("group", "change", "told"), CHANGES, ids=[f"{group}-{told}" for group, _, told in CHANGES])
def test_other_ground_is_refused_with_old_and_new(
    broken: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str], group: str, change: list[object], told: str
) -> None:
    assert resuming.run(resuming.fit(broken.parent, broken.name, *change)) == 1
    said = capsys.readouterr().err
    assert f"cut_short/checkpoints/last.ckpt (step 6) was begun on other ground: {group}: " in said
    assert told in said
    assert f"--allow_changed {group}" in said


@pytest.mark.slow
@pytest.mark.parametrize(("group", "change", "told"), CHANGES, ids=[f"{group}-{told}" for group, _, told in CHANGES])
def test_other_ground_that_is_allowed_is_gone_on_upon(
    broken: Path, resuming: ModuleType, group: str, change: list[object], told: str
) -> None:
    stage = resuming.copied(broken, f"allowed-{abs(hash(told))}")
    assert resuming.run(resuming.fit(broken.parent, stage.name, *change, "--allow_changed", group)) == 0
    # Where posts or steps are others, the epoch's steps are planned and taken anew, behind the six that were taken.
    steps = {"posts_per_step": 6 + 8 + 8, "accumulate": 6 + 24, "limit": 6 + 20, "per_post": 6 + 24, "epochs": 36}
    expected = next((count for name, count in steps.items() if name in str(change[0])), 24)
    assert resuming.step_of(stage / "checkpoints" / "last.ckpt") == expected


@pytest.mark.slow
def test_an_optimizer_that_may_change_takes_its_new_settings(chain: Path, broken: Path, resuming: ModuleType) -> None:
    of = "--model.init_args.optimizer."
    changes = {"slower": (f"{of}learning_rate", 0.001), "level": (f"{of}schedule", "plateau")}
    for name, change in changes.items():
        assert resuming.run(resuming.fit(chain, f"{name}-whole", *change)) == 0
        stage = resuming.copied(broken, f"{name}-resumed")
        allowed = ("--allow_changed", "optimizer", f"{of}weight_decay", 0.5)
        assert resuming.run(resuming.fit(chain, stage.name, *change, *allowed)) == 0
        whole, found = (resuming.logged(each) for each in (chain / f"{name}-whole", stage))
        for rates in (tag for tag in whole if tag.startswith("lr-")):
            behind = {step: value for step, value in whole[rates].items() if step > 6}
            assert len(behind) == 17
            assert {step: value for step, value in found[rates].items() if step > 6} == behind
        saved = torch.load(stage / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]
        assert [group["weight_decay"] for group in saved["param_groups"]] == [0.5, 0.0]


def test_another_model_or_adapter_or_vocabulary_is_refused(
    chain: Path, broken: Path, other_tokenizer: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resuming.run(resuming.fit(chain, broken.name, "--model.init_args.pretrained", other_tokenizer)) == 1
    assert "vocabulary was " in capsys.readouterr().err
    for group, change in (("adapter", {"adapter": True}), ("model", {})):
        other = [] if change else ["--model.init_args.pretrained", chain / "models" / "assistant"]
        assert resuming.run(resuming.fit(chain, broken.name, *other, **change)) == 1
        assert f"{group}: " in capsys.readouterr().err
    other = ["--model.init_args.pretrained", chain / "models" / "assistant", "--allow_changed", "model"]
    assert resuming.run(resuming.fit(chain, resuming.copied(broken, "misfit").name, *other)) == 1
    assert "the checkpoint's weights do not fit this model" in capsys.readouterr().err


def test_a_rationale_file_that_changed_is_other_ground(
    chain: Path, broken: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    path = chain / "augment" / "rationales-train.jsonl"
    content = path.read_bytes()
    try:
        path.write_bytes(content + (chain / "teacher" / "rationales-train.jsonl").read_bytes().split(b"\n")[0] + b"\n")
        assert resuming.run(resuming.fit(chain, broken.name)) == 1
    finally:
        path.write_bytes(content)
    assert "data: augment/rationales-train.jsonl was " in capsys.readouterr().err


def test_an_unknown_change_cannot_be_allowed(
    chain: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resuming.run(resuming.fit(chain, "cut_short", "--allow_changed", "data,sed")) == 1
    assert "there is no 'sed'; it may name seed, batch, data" in capsys.readouterr().err


# -- damage -------------------------------------------------------------------------------------------------------


def test_a_damaged_last_checkpoint_is_named_and_the_previous_one_taken(
    chain: Path,
    broken: Path,
    resuming: ModuleType,
    whole: dict[bool, Path],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage = resuming.copied(broken, "damaged")
    last = stage / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    assert resuming.run(resuming.fit(chain, "damaged")) == 0
    assert "last.ckpt: the checkpoint is damaged" in caplog.text
    assert "The fit goes on from" in caplog.text
    assert "previous.ckpt (step 3)" in caplog.text
    assert resuming.differences(whole[False], stage) == []
    stage = resuming.copied(broken, "ruined")
    for path in (stage / "checkpoints").glob("*.ckpt"):
        path.write_bytes(b"")
    assert resuming.run(resuming.fit(chain, "ruined")) == 1
    said = capsys.readouterr().err
    assert "last.ckpt: the checkpoint is damaged" in said
    assert "previous.ckpt: the checkpoint is damaged" in said


def test_a_checkpoint_of_a_later_or_an_earlier_version_is_refused(
    chain: Path, broken: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, change, told in (
        ("later", {"format": 2}, "a later version of mulcot wrote it (format 2, this one reads 1)"),
        ("earlier", {"ground": None, "format": 1}, "was begun by another version of mulcot"),
    ):
        last = resuming.copied(broken, name) / "checkpoints" / "last.ckpt"
        checkpoint = torch.load(last, weights_only=True)
        checkpoint["mulcot"] |= change
        torch.save(checkpoint, last)
        (last.parent / "sha256.json").unlink()
        assert resuming.run(resuming.fit(chain, name)) == 1
        assert told in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_best_epoch_gives_way_to_the_best_that_comes(
    chain: Path, resuming: ModuleType, whole: dict[bool, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError, match="pulled the plug"):
        resuming.run(resuming.fit(chain, "unbest", *resuming.strike("on_train_batch_start", step=14, number=0)))
    best = chain / "unbest" / "checkpoints" / "best.ckpt"
    best.write_bytes(best.read_bytes()[:-100])
    assert resuming.run(resuming.fit(chain, "unbest")) == 0
    assert "best.ckpt: the checkpoint is damaged" in caplog.text
    assert "The best of the epochs to come takes its place" in caplog.text
    assert resuming.step_of(best) == 24
    last = [
        torch.load(stage / "checkpoints" / "last.ckpt", weights_only=True) for stage in (best.parents[1], whole[False])
    ]
    assert all(torch.equal(value, last[1]["state_dict"][name]) for name, value in last[0]["state_dict"].items())


@pytest.mark.slow
def test_a_run_that_was_moved_goes_on(
    chain: Path, broken: Path, resuming: ModuleType, whole: dict[bool, Path], tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    for name in ("posts", "teacher", "augment", "models", "assistant", "soft_labels", "cut_short"):
        shutil.copytree(chain / name, moved / name)
    assert resuming.run(resuming.fit(moved, "cut_short")) == 0
    assert resuming.differences(whole[False], moved / "cut_short") == []


def test_a_disk_that_is_full_ends_the_fit_and_keeps_the_checkpoint(
    chain: Path, broken: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    last = resuming.copied(broken, "full") / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, hard))
    try:
        assert resuming.run(resuming.fit(chain, "full")) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "last.ckpt: no room to save the checkpoint (File too large): it needs " in capsys.readouterr().err
    assert last.read_bytes() == content
    assert not list(last.parent.glob("*.tmp"))


def test_an_adapters_checkpoint_holds_the_adapter_alone(
    chain: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = resuming.begun(chain, "small", adapter=True)
    last = stage / "checkpoints" / "last.ckpt"
    trained = sum(value.numel() for value in torch.load(last, weights_only=True)["state_dict"].values())
    assert trained > 1000
    assert last.stat().st_size <= 1.1 * 12 * trained + 1e6
    larger = ("--model.init_args.lora.r", 8)
    assert resuming.run(resuming.fit(chain, "small", *larger, adapter=True)) == 1
    assert "adapter: model.init_args.lora.r was 4, is 8" in capsys.readouterr().err
    assert resuming.run(resuming.fit(chain, "small", *larger, "--allow_changed", "adapter", adapter=True)) == 1
    assert "the checkpoint's weights do not fit this model" in capsys.readouterr().err


# -- the stage's folder -------------------------------------------------------------------------------------------


def test_two_fits_do_not_work_in_one_folder(
    chain: Path, broken: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(broken / ".lock", "taken"):
        assert resuming.run(resuming.fit(chain, broken.name)) == 75
    said = capsys.readouterr().err
    assert f"{broken}: another process works on this stage" in said
    assert f"process {os.getpid()} on" in said


def test_what_a_killed_process_left_is_swept_at_the_start(chain: Path, broken: Path, resuming: ModuleType) -> None:
    stage = resuming.copied(broken, "swept")
    left = [stage / ".0123456789abcdef.tmp", stage / "checkpoints" / ".last.ckpt.0123abcd.tmp"]
    kept = [stage / "mine.tmp", stage / ".mine.tmp"]
    for path in (*left, *kept):
        path.write_bytes(b"half")
    with pytest.raises(RuntimeError, match="pulled the plug"):
        resuming.run(resuming.fit(chain, "swept", *resuming.strike("on_train_start", number=0)))
    assert [path.exists() for path in (*left, *kept)] == [False, False, True, True]


# -- numbers, memory, disk ----------------------------------------------------------------------------------------


def test_a_gradient_that_is_no_number_stops_before_the_step(
    chain: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil = json.dumps([{"class_path": "resuming.SpoiltGradient", "init_args": {"step": 4}}])
    assert resuming.run(resuming.fit(chain, "spoilt", "--trainer.callbacks", spoil)) == 1
    said = capsys.readouterr().err
    assert "step 5: the gradient of model." in said
    assert "is not a finite number, though every loss is, on the posts train-" in said
    assert "the step was not taken" in said
    checkpoint = torch.load(chain / "spoilt" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert all(bool(value.isfinite().all()) for value in checkpoint["state_dict"].values())


def test_weights_that_an_update_made_no_numbers_are_neither_asked_nor_saved(
    chain: Path, broken: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Losses and gradients of the step were right. A validation comes next, or a save within the epoch."""
    steep = ("--model.init_args.optimizer.learning_rate", "1e38", "--model.init_args.optimizer.schedule", "constant")
    assert resuming.run(resuming.fit(chain, "diverged", *steep, "--trainer.val_check_interval", 2)) == 1
    said = capsys.readouterr().err
    assert "step 1: the weight model." in said
    assert "is not a finite number any more: training diverged" in said
    assert "what was saved before is kept. Lower model.init_args.optimizer.learning_rate" in said
    assert not list((chain / "diverged").rglob("*.ckpt"))
    last = resuming.copied(broken, "diverged-later") / "checkpoints" / "last.ckpt"
    spoil = json.dumps([{"class_path": "resuming.SpoiltWeight", "init_args": {"step": 7}}])
    often = ("--checkpoints.every_steps", 1, "--trainer.callbacks", spoil)
    assert resuming.run(resuming.fit(chain, "diverged-later", *often)) == 1
    assert "step 7: the weight model." in capsys.readouterr().err
    assert resuming.step_of(last) == 6


def test_large_weights_are_numbers() -> None:
    """Their norm is not."""
    model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(1e38)
    refuse_diverged(model, 3)
    with torch.no_grad():
        model.bias[1] = float("-inf")
    with pytest.raises(InputError, match="step 3: the weight bias is not a finite number"):
        refuse_diverged(model, 3)


def test_memory_that_runs_out_says_what_to_lower(
    chain: Path, resuming: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.student.StudentStage.training_step", lambda *_: torch.empty(2**60))
    assert resuming.run(resuming.fit(chain, "greedy")) == 1
    said = capsys.readouterr().err
    assert "out of memory (" in said
    for name in ("accumulate_grad_batches", "max_tokens", "activation_checkpointing", "quantise", "eval_max_tokens"):
        assert name in said


def test_a_disk_that_fills_while_a_logger_writes_is_told_of_in_a_line(
    chain: Path,
    broken: Path,
    resuming: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TensorBoard writes in a thread of its own, and its error names no file."""
    stage, write, written = resuming.copied(broken, "filled"), RecordWriter.write, []

    def fill(writer: RecordWriter, data: bytes) -> None:
        written.append(data)
        if len(written) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(writer, data)

    hook = threading.excepthook
    monkeypatch.setattr(RecordWriter, "write", fill)
    assert resuming.run(resuming.fit(chain, "filled")) == 1
    assert threading.excepthook is hook
    said = capsys.readouterr().err
    told = rf"mulcot: error: a file of the stage {stage}: no room \(No space left on device\), ([\d,]+) bytes are free"
    found = re.search(told, said)
    assert found is not None, said
    assert int(found[1].replace(",", "")) > 0
    assert "make room; the same command goes on" in said
    assert "Traceback" not in said
    assert "Thread-" not in said
    monkeypatch.undo()
    assert resuming.run(resuming.fit(chain, "filled")) == 0
