"""Adapters on small weights, through the command line; skipped where bitsandbytes is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mulcot.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("bitsandbytes")]
QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"]
LORA = json.dumps({"r": 4, "alpha": 8, "dropout": 0.0})
WITHOUT_BITSANDBYTES = """
import sys
sys.modules["bitsandbytes"] = None
from mulcot.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (pip install mulcot[quantised])")


def fit(run: Path, stage: str, *args: object) -> dict[str, list[float]]:
    """Fits a student under an adapter, and gives its losses, step by step."""
    given = [
        *("fit", "--config", "student.yaml", *QUICK, "--run_dir", run, "--stage", stage, "--trainer.max_epochs", 2),
        *("--data.init_args.rationales", f'["{run}/teacher/rationales-train.jsonl"]', "--data.init_args.soft_labels"),
        *("null", "--model.init_args.lora", LORA, "--model.init_args.max_new_tokens", 8, *args),
    ]
    assert main([str(arg) for arg in given]) == 0
    events = EventAccumulator(str(run / stage / "tensorboard"))
    events.Reload()
    names = [tag for tag in events.Tags()["scalars"] if tag.startswith("loss/")]
    return {name: [event.value for event in events.Scalars(name)] for name in names}


HARD = ("--losses.kl=null", "--model.init_args.lambda_soft", 0, "--model.init_args.assistant", "null")


@pytest.fixture(scope="module")
def small(bitsandbytes: None, embedded: Path) -> dict[str, list[float]]:
    """The losses of a student of 4 bits."""
    return fit(embedded, "small", *HARD, "--model.init_args.quantise", "4bit")


def test_a_student_of_4_bits_learns_from_other_numbers_than_a_whole_one(
    embedded: Path, small: dict[str, list[float]]
) -> None:
    whole = fit(embedded, "whole", *HARD, "--test_after_fit", "false")
    assert small.keys() == whole.keys()
    for name, values in whole.items():
        assert small[name][0] != values[0]
        assert small[name][0] == pytest.approx(values[0], rel=0.15), name
        assert small[name][-1] < 0.95 * small[name][0], name  # after the evaluation of the first epoch, too


def test_what_it_leaves_is_asked_and_merged_without_bitsandbytes(
    embedded: Path, small: dict[str, list[float]], tmp_path: Path
) -> None:
    folder = embedded / "small" / "model"
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str((embedded / "models" / "student").resolve())
    assert all("lora_" in name for name in load_file(folder / "adapter_model.safetensors"))
    assert json.loads((embedded / "small" / "metrics.json").read_text())["test"]["classification"]["posts"] == 12
    picture = sorted((embedded / "posts" / "posts" / "images").glob("*.png"))[0]
    asked = ["infer", "--image", picture, "--text", "an owl", "--max_new_tokens", 4, "--as_json", "true", "--model"]
    merged = tmp_path / "merged"
    answers = []
    for args in (
        [*asked, embedded / "small"],
        ["export", "--model", embedded / "small", "--out", merged],
        [*asked, merged],
        [*asked, embedded / "small" / "checkpoints" / "last.ckpt"],
    ):
        command = [sys.executable, "-c", WITHOUT_BITSANDBYTES, *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answers += [json.loads(done.stdout)["probabilities"]] if args[0] == "infer" else []
    assert answers[1] == pytest.approx(answers[0], abs=1e-4)
    assert sum(answers[2].values()) == pytest.approx(1.0, abs=1e-4)


def test_an_assistant_of_8_bits_teaches_nearly_the_same(embedded: Path) -> None:
    beside = (
        *("--model.init_args.assistant", embedded / "models" / "assistant", "--trainer.max_epochs", 1),
        *("--model.init_args.online_assistant", "true", "--test_after_fit", "false"),
    )
    whole = fit(embedded, "taught", *beside)
    small = fit(embedded, "taught-small", *beside, "--model.init_args.assistant_quantise", "8bit")
    for task in ("reasoning", "classification"):
        assert small[f"loss/{task}/ce"][0] == whole[f"loss/{task}/ce"][0]  # the student is whole
        mine, theirs = small[f"loss/{task}/kl"][0], whole[f"loss/{task}/kl"][0]
        assert mine != theirs
        assert mine == pytest.approx(theirs, rel=0.1)


def test_checkpointing_and_bf16_go_with_4_bits(embedded: Path, small: dict[str, list[float]]) -> None:
    args = (*HARD, "--model.init_args.quantise", "4bit", "--test_after_fit", "false", "--trainer.max_epochs", 1)
    again = fit(embedded, "again", *args, "--model.init_args.activation_checkpointing", "true")
    assert again["loss/total"][0] == pytest.approx(small["loss/total"][0], rel=1e-6)
    mixed = fit(embedded, "mixed", *args, "--trainer.precision", "bf16-mixed")
    assert mixed["loss/total"][0] == pytest.approx(small["loss/total"][0], rel=0.03)
