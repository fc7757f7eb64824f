"""`mulcot infer`: where it computes, and with whose labels it answers."""

import json
from pathlib import Path

import pytest
import torch

from mulcot.checkpoints import DurableCheckpointIO
from mulcot.cli import main
from mulcot.models import Lora
from mulcot.rows import RowEncoder
from stages import StudentStage


@pytest.fixture(scope="module")
def question(embedded: Path) -> list[str]:
    picture = sorted((embedded / "posts" / "posts" / "images").glob("test-*.png"))[0]
    return ["--image", str(picture), "--text", "Maple Cafe is fine", "--max_new_tokens", "4"]


@pytest.mark.parametrize("device", ["cuda", "cuda:77", "gpu", "", "meta", "hpu"])
def test_a_device_that_is_not_here_is_named(
    capsys: pytest.CaptureFixture[str], embedded: Path, question: list[str], device: str
) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here, so asking for one is no mistake")
    assert main(["infer", "--model", str(embedded / "models" / "student"), *question, "--device", device]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert f"--device {device!r} cannot be used here" in lines[0]
    assert "cpu" in lines[0]


@pytest.mark.parametrize("lora", [None, Lora(r=2)])
def test_a_checkpoint_is_asked_for_the_labels_and_with_the_picture_size_that_it_was_trained_with(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    embedded: Path,
    question: list[str],
    tmp_path: Path,
    lora: Lora | None,
) -> None:
    stage = StudentStage(
        str(embedded / "models" / "student"), tmp_path, labels=["good", "bad"], image_size=(56, 28), lora=lora
    )
    stage.configure_model()
    checkpoint: dict = {}
    stage.on_save_checkpoint(checkpoint)
    DurableCheckpointIO().save_checkpoint(checkpoint, tmp_path / "best.ckpt")
    sizes = []
    kept = RowEncoder.__init__

    def noting(self, processor, labels, image_size=None, **given) -> None:
        sizes.append(image_size)
        kept(self, processor, labels, image_size, **given)

    monkeypatch.setattr(RowEncoder, "__init__", noting)
    assert main(["infer", "--model", str(tmp_path / "best.ckpt"), *question, "--as_json", "true"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer["probabilities"]) == {"good", "bad"}
    assert sizes == [(56, 28)]


def test_a_run_that_is_not_there_is_no_name_on_the_hub(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, question: list[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r2").mkdir()
    for given in ("r2/assistant", "nobody/nothing"):
        assert main(["infer", "--model", given, *question]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert given in lines[0]
        assert "`mulcot fit" in lines[0]


def test_labels_of_a_model_can_neither_act_on_the_terminal_nor_be_markup(
    capsys: pytest.CaptureFixture[str], embedded: Path, question: list[str], tmp_path: Path
) -> None:
    odd = "po\x1b[31m\x9b1m[link=http://e]X[/link][/b]"
    stage = StudentStage(str(embedded / "models" / "student"), tmp_path, labels=[odd, "bad"])
    stage.configure_model()
    checkpoint: dict = {}
    stage.on_save_checkpoint(checkpoint)
    DurableCheckpointIO().save_checkpoint(checkpoint, tmp_path / "best.ckpt")
    assert main(["infer", "--model", str(tmp_path / "best.ckpt"), *question]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert "po[U+001B][31m[U+009B]1m[link=http://e]X[/link][/b]" in shown
    assert not {"\x1b", "\x9b"} & set(shown)
