"""`mulcot export`: a checkpoint becomes a folder that says what it was trained for."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from mulcot.checkpoints import DurableCheckpointIO
from mulcot.cli import main
from mulcot.models import Lora, merge_adapter
from stages import StudentStage


@pytest.mark.parametrize("settings", [{"freeze_vision": True}, {"lora": Lora(r=2)}], ids=["frozen vision", "adapter"])
def test_a_checkpoint_is_exported_with_its_weights_labels_and_picture_size(
    embedded: Path, tmp_path: Path, settings: dict
) -> None:
    base = str(embedded / "models" / "student")
    stage = StudentStage(base, tmp_path, labels=["good", "bad"], image_size=(56, 28), **settings)
    stage.configure_model()
    assert stage.model is not None
    with torch.no_grad():
        for parameter in stage.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    checkpoint: dict = {}
    stage.on_save_checkpoint(checkpoint)
    DurableCheckpointIO().save_checkpoint(checkpoint, tmp_path / "best.ckpt")
    out = tmp_path / "merged"
    assert main(["export", "--model", str(tmp_path / "best.ckpt"), "--out", str(out)]) == 0
    kept = json.loads((out / "mulcot.json").read_text())
    assert (kept["labels"], kept["image_size"]) == (["good", "bad"], [56, 28])
    made = dict(merge_adapter(stage.model).named_parameters())
    for name, value in AutoModelForImageTextToText.from_pretrained(out).named_parameters():
        assert torch.equal(value, made[name]), name


def test_an_earlier_export_stays_when_the_model_cannot_be_loaded(
    capsys: pytest.CaptureFixture[str], embedded: Path, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    assert main(["export", "--model", str(embedded / "models" / "student"), "--out", str(out)]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(["export", "--model", "nobody/nothing", "--out", str(out)]) == 2
    assert "nobody/nothing is neither a folder here nor" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_file_is_no_place_for_an_export(capsys: pytest.CaptureFixture[str], embedded: Path, tmp_path: Path) -> None:
    (tmp_path / "merged").write_text("mine")
    assert main(["export", "--model", str(embedded / "models" / "student"), "--out", str(tmp_path / "merged")]) == 1
    assert "merged is a file" in capsys.readouterr().err
    assert (tmp_path / "merged").read_text() == "mine"
