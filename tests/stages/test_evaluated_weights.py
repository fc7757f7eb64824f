"""Which weights `test` and `validate` evaluate: a checkpoint that is there, fits, and is on the base that it was on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mulcot.cli import main

QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"]
RANK_4 = {"r": 4, "alpha": 8, "dropout": 0.0}
Verb = Callable[..., int]


def command(verb: str, run: Path, stage: str, *args: object, lora: dict[str, object] | None = None) -> list[str]:
    """A verb for a student of gold labels alone, which writes little in evaluation."""
    given = ["--config", "student.yaml", "--config", "experiment/labels_only.yaml", *QUICK]
    given += ["--run_dir", run, "--stage", stage, "--model.init_args.max_new_tokens", 3]
    given += ["--model.init_args.lora", json.dumps(lora)] if lora else []
    return [str(word) for word in (verb, *given, *args)]


def fit(run: Path, stage: str, *args: object, lora: dict[str, object] | None = None) -> Path:
    short = ["--trainer.max_epochs", 1, "--test_after_fit", "false"]
    assert main(command("fit", run, stage, *short, *args, lora=lora)) == 0
    return run / stage


def moved_weights(folder: Path, target: Path) -> Path:
    """A model of the same shapes with other weights."""
    shutil.copytree(folder, target)
    path = target / "model.safetensors"
    save_file({name: value * 1.5 for name, value in load_file(path).items()}, path, {"format": "pt"})
    return target


def probabilities(stage: Path) -> list[float]:
    """The probabilities that the verb `test` found."""
    lines = (stage / "predictions-test.jsonl").read_text().splitlines()
    return [share for line in lines for share in json.loads(line)["probabilities"].values()]


@pytest.fixture(scope="module")
def adapter(embedded: Path) -> Path:
    """A stage that trained an adapter on models/student, with an assistant beside it that it did not ask."""
    beside = ["--model.init_args.assistant", embedded / "models" / "assistant"]
    stage = fit(embedded, "adapter_r4", *beside, lora=RANK_4)
    assert main(command("test", embedded, stage.name, lora=RANK_4)) == 0
    return stage


@pytest.fixture(scope="module")
def whole_weights(embedded: Path) -> Path:
    return fit(embedded, "all_weights")


@pytest.fixture(scope="module")
def other_base(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moved_weights(embedded / "models" / "student", tmp_path_factory.mktemp("bases") / "other")


@pytest.mark.parametrize("verb", ["test", "validate"])
def test_an_adapter_on_another_base_is_refused_with_old_and_new(
    embedded: Path, adapter: Path, other_base: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    before = probabilities(adapter)
    moved = ["--model.init_args.pretrained", other_base]
    assert main(command(verb, embedded, adapter.name, *moved, lora=RANK_4)) == 1
    said = capsys.readouterr().err
    assert "adapter_r4/checkpoints/best.ckpt" in said
    assert "model: " in said
    assert f"{other_base.parent.name}/other was none, is " in said
    assert "models/student was " in said
    assert "--allow_changed model" in said
    assert "--fresh" not in said
    assert probabilities(adapter) == before
    if verb == "test":
        assert main(command(verb, embedded, adapter.name, *moved, "--allow_changed", "model", lora=RANK_4)) == 0
        assert probabilities(adapter) != before
        assert main(command(verb, embedded, adapter.name, lora=RANK_4)) == 0
        assert probabilities(adapter) == before


def test_an_adapter_with_another_scale_is_refused(
    embedded: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger = RANK_4 | {"alpha": 800}
    assert main(command("test", embedded, adapter.name, lora=larger)) == 1
    said = capsys.readouterr().err
    assert "adapter: model.init_args.lora.alpha was 8, is 800" in said
    assert "--allow_changed adapter" in said
    assert main(command("test", embedded, adapter.name, "--allow_changed", "model,adapter", lora=larger)) == 0


@pytest.mark.slow
def test_a_base_that_changed_under_its_adapter_is_refused(
    embedded: Path, other_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "refitted"
    shutil.copytree(embedded / "models" / "student", base)
    fit(embedded, "on_refitted", "--model.init_args.pretrained", base, lora=RANK_4)
    shutil.copy(other_base / "model.safetensors", base / "model.safetensors")
    given = command("test", embedded, "on_refitted", "--model.init_args.pretrained", base, lora=RANK_4)
    assert main(given) == 1
    assert f"{tmp_path.name}/refitted was " in capsys.readouterr().err
    shutil.rmtree(base)
    # The same weights elsewhere are the same base.
    assert main([*given, "--model.init_args.pretrained", str(embedded / "models" / "student")]) == 0


def test_a_frozen_vision_tower_is_of_the_base(
    embedded: Path, other_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = ["--model.init_args.freeze_vision", "true"]
    fit(embedded, "frozen_tower", *frozen)
    moved = [*frozen, "--model.init_args.pretrained", other_base]
    assert main(command("test", embedded, "frozen_tower", *moved)) == 1
    assert "models/student was " in capsys.readouterr().err
    assert main(command("test", embedded, "frozen_tower", *frozen)) == 0


@pytest.mark.slow
def test_what_a_test_does_not_depend_on_may_differ(
    embedded: Path, adapter: Path, whole_weights: Path, other_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = ["--model.init_args.assistant", other_base, "--data.init_args.eval_batch_size", 5]
    assert main(command("test", embedded, adapter.name, lora=RANK_4)) == 0
    before = probabilities(adapter)
    assert main(command("test", embedded, adapter.name, *beside, "--seed_everything", 4, lora=RANK_4)) == 0
    assert probabilities(adapter) == pytest.approx(before, abs=1e-5)
    assert main(command("test", embedded, adapter.name, lora=RANK_4 | {"dropout": 0.3})) == 0
    assert probabilities(adapter) == before
    # All weights are in the checkpoint: those of the base are overwritten, and not even read for a digest.
    assert main(command("test", embedded, whole_weights.name)) == 0
    before = probabilities(whole_weights)
    monkeypatch.setattr("mulcot.loaded_weights.input_digests", lambda *given: pytest.fail(f"{given} were hashed"))
    moved = ["--model.init_args.pretrained", other_base]
    assert main(command("test", embedded, whole_weights.name, *moved)) == 0
    assert probabilities(whole_weights) == before


def test_a_base_in_four_bits_is_told_of_and_not_refused(
    embedded: Path, adapter: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """As if the adapter had been trained on quantised weights: this verb takes the whole ones."""
    path = tmp_path / "quantised.ckpt"
    checkpoint = torch.load(adapter / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["mulcot"]["ground"]["adapter"]["model.init_args.quantise"] = "4bit"
    torch.save(checkpoint, path)
    assert main(command("test", embedded, adapter.name, "--ckpt_path", path, lora=RANK_4)) == 0
    assert "model.init_args.quantise was 4bit, is none" in caplog.text


@pytest.mark.parametrize("ground", [None, 5, {"model": 3}])
def test_an_adapter_that_does_not_say_what_it_was_on_is_refused(
    embedded: Path, adapter: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, ground: object
) -> None:
    path = tmp_path / "silent.ckpt"
    checkpoint = torch.load(adapter / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint["mulcot"]["ground"] = ground
    torch.save(checkpoint, path)
    given = command("test", embedded, adapter.name, "--ckpt_path", path, lora=RANK_4)
    assert main(given) == 1
    assert "silent.ckpt does not say on which model" in capsys.readouterr().err
    assert main([*given, "--allow_changed", "model,adapter"]) == 0


def test_weights_of_other_shapes_are_named_with_both(
    embedded: Path, adapter: Path, whole_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger = ["--model.init_args.pretrained", embedded / "models" / "assistant"]
    path = whole_weights / "checkpoints" / "last.ckpt"
    assert main(command("test", embedded, "misfit_size", *larger, "--ckpt_path", path)) == 1
    said = capsys.readouterr().err
    assert f"mulcot: error: {path}: the checkpoint's weights do not fit this model" in said
    name, old, new = said.split("do not fit this model: ")[1].split("; ")[0].replace(" was ", ", is ").split(", is ")
    state = torch.load(path, weights_only=True)["state_dict"]
    assert list(state[f"model.{name}"].shape) == json.loads(old) != json.loads(new)
    path = adapter / "checkpoints" / "best.ckpt"
    assert main(command("test", embedded, adapter.name, lora=RANK_4 | {"r": 8})) == 1
    said = capsys.readouterr().err
    assert f"{path}: the checkpoint's weights do not fit this model" in said
    assert ".lora_A.default.weight was [4, " in said
    assert ", is [8, " in said
    assert main(command("test", embedded, adapter.name)) == 1
    assert "weights do not fit this model" in capsys.readouterr().err


def test_a_checkpoint_without_weights_is_refused(
    embedded: Path, whole_weights: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for content in ({}, {"state_dict": {"model.a": 1}}):
        torch.save(content, tmp_path / "hollow.ckpt")
        assert main(command("test", embedded, whole_weights.name, "--ckpt_path", tmp_path / "hollow.ckpt")) == 1
        assert "hollow.ckpt: the checkpoint is damaged: it holds no state_dict of tensors" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["fit", "test", "validate"])
@pytest.mark.parametrize(
    ("given", "told", "code"),
    [
        ("", "--ckpt_path is empty: give", 1),
        ("FOLDER", "FOLDER: refused, because it is no regular file", 1),
        ("/dev/null", "/dev/null: refused, because it is no regular file", 1),
        ("s3://b/x.ckpt", "s3://b/x.ckpt: checkpoints are written to and read from local folders", 1),
        ("FOLDER/none.ckpt", "FOLDER/none.ckpt: there is no such checkpoint", None),
    ],
)
def test_what_is_no_checkpoint_is_told_of_as_what_it_is(
    embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, given: str, told: str, code: int
) -> None:
    path = given.replace("FOLDER", str(tmp_path))
    left = main(command(verb, embedded, "unchecked", "--ckpt_path", path))
    assert told.replace("FOLDER", str(tmp_path)) in capsys.readouterr().err
    assert left == (code or {"fit": 1}.get(verb, 2))


def test_a_prediction_too_is_told_of_an_empty_checkpoint(embedded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["predict", "--config", "teacher.yaml", "--run_dir", str(embedded), "--stage", "emptied", *QUICK[:2]]
    assert main([*given, "--ckpt_path="]) == 1
    assert "--ckpt_path is empty: give" in capsys.readouterr().err


def test_a_finished_fit_says_how_to_train_longer_and_that_works(
    embedded: Path, whole_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = ["--trainer.max_epochs", 2]
    assert main(command("fit", embedded, whole_weights.name, *longer)) == 1
    last = whole_weights / "checkpoints" / "last.ckpt"
    how = f"--ckpt_path {last} --allow_changed schedule"
    assert f"another --stage; to train it longer: --stage OTHER {how}" in capsys.readouterr().err
    step = int(torch.load(last, weights_only=True)["global_step"])
    stage = fit(embedded, "trained_longer", *how.split(), *longer)
    assert f"going on from step {step}, saved in {last}" in capsys.readouterr().out
    assert int(torch.load(stage / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]) == 2 * step
    predict = ["predict", "--config", "teacher.yaml", "--run_dir", str(embedded), *QUICK[:2]]
    assert main(predict) == 1
    assert "to train it longer" not in capsys.readouterr().err
