"""The student's objective, driven through the command line on the tiny chain: views, schedules, terms of one's own."""

import json
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mulcot.checkpoints import read_checkpoint
from mulcot.cli import main

QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"]
ONE_EPOCH = ("--trainer.max_epochs", 1, "--test_after_fit", "false")


def fit(chain: Path, stage: str, *args: object) -> int:
    common = ["fit", "--config", "student.yaml", "--run_dir", chain, "--stage", stage, *QUICK, *ONE_EPOCH]
    return main([str(arg) for arg in (*common, *args)])


def scalars(stage: Path, *prefixes: str) -> dict[str, list[float]]:
    events = EventAccumulator(str(stage / "tensorboard"))
    events.Reload()
    names = [tag for tag in events.Tags()["scalars"] if tag.startswith(prefixes or "loss/")]
    return {name: [event.value for event in events.Scalars(name)] for name in names}


def online(*args: object) -> tuple[object, ...]:
    return ("--model.init_args.online_assistant", "true", "--data.init_args.soft_labels", "null", *args)


def test_the_assistant_beside_the_student_teaches_what_a_cache_of_every_id_teaches(chain: Path) -> None:
    cache = ["--model.init_args.soft_label_k", "1076", "--stage", "whole_cache"]
    assert main(["predict", "--config", "soft_labels.yaml", "--run_dir", str(chain), *QUICK[:4], *cache]) == 0
    assert fit(chain, "from_cache", "--data.init_args.soft_labels", chain / "whole_cache" / "cache") == 0
    assert fit(chain, "from_assistant", *online()) == 0
    cached, beside = scalars(chain / "from_cache"), scalars(chain / "from_assistant")
    assert cached.keys() == beside.keys()
    for name, values in cached.items():
        assert beside[name] == pytest.approx(values, rel=5e-3), name  # the cache rounds to fp16


def test_the_assistant_is_not_in_the_checkpoint(chain: Path) -> None:
    if not (chain / "from_assistant").is_dir():
        assert fit(chain, "from_assistant", *online()) == 0
    student = read_checkpoint(chain / "student" / "checkpoints" / "last.ckpt")["state_dict"]
    beside = read_checkpoint(chain / "from_assistant" / "checkpoints" / "last.ckpt")["state_dict"]
    assert beside.keys() == student.keys()


def test_hidden_states_are_learnt_through_a_projection_that_is_trained_and_saved(chain: Path) -> None:
    overlay = ("--config", "losses/hidden_mse.yaml", "--losses.hidden_mse.init_args.layers", 2)
    assert fit(chain, "hidden", *overlay) == 0
    logged = scalars(chain / "hidden")
    for task in ("reasoning", "classification"):
        hidden = logged[f"loss/{task}/hidden_mse"]
        assert hidden[-1] < hidden[0]
        hard, soft = logged[f"loss/{task}/ce"][0], logged[f"loss/{task}/kl"][0]
        assert logged[f"loss/{task}/total"][0] == pytest.approx(0.7 * hard + 0.3 * soft + 0.1 * hidden[0], rel=1e-5)
    state = read_checkpoint(chain / "hidden" / "checkpoints" / "last.ckpt")["state_dict"]
    shapes = {name: tuple(value.shape) for name, value in state.items() if name.startswith("projections.")}
    configs = [json.loads((chain / "models" / name / "config.json").read_text()) for name in ("assistant", "student")]
    assistant, student = [config.get("text_config", config)["hidden_size"] for config in configs]
    assert shapes == {f"projections.hidden_mse.{index}.weight": (assistant, student) for index in range(2)}
    # The projection serves training alone: what is asked afterwards is the model.
    assert main(["test", "--config", "student.yaml", "--run_dir", str(chain), "--stage", "hidden", *QUICK[:4]]) == 0


def test_schedules_decide_lambda_temperature_and_weight(chain: Path) -> None:
    schedule = '{"shape": "linear", "start": 0.0, "end": 1.0}'
    cooling = '{"shape": "linear", "start": 4.0, "end": 1.0}'
    given = ("--model.init_args.lambda_soft", schedule, "--losses.kl.init_args.temperature", cooling)
    assert fit(chain, "scheduled", *online(*given)) == 0
    logged = scalars(chain / "scheduled", "loss/", "schedule/")
    steps = len(logged["loss/total"])
    shares = [step / (steps - 1) for step in range(steps)]
    assert logged["schedule/lambda"] == pytest.approx(shares)
    assert logged["schedule/temperature/kl"] == pytest.approx([4 - 3 * share for share in shares])
    for task in ("reasoning", "classification"):
        hard, soft = logged[f"loss/{task}/ce"], logged[f"loss/{task}/kl"]
        expected = [(1 - share) * a + share * b for share, a, b in zip(shares, hard, soft, strict=True)]
        assert logged[f"loss/{task}/total"] == pytest.approx(expected, rel=1e-5)


def test_a_temperature_schedule_needs_the_assistant_itself(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cooling = '{"shape": "linear", "start": 4.0, "end": 1.0}'
    assert fit(chain, "cooled", "--losses.kl.init_args.temperature", cooling) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "temperature schedule" in error
    assert "online_assistant=true" in error
    assert not (chain / "cooled" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--model.init_args.lambda_soft", "1.5"], ["lambda_soft", "1.5", "must be 1 or less"]),
        (["--losses.kl.init_args.temperature", "0"], ["temperature", "above 0"]),
        (["--losses.kl.init_args.temperature", "3"], ["kl", "T=2", "--losses.kl.init_args.temperature=2"]),
        (["--losses.kl", "UniversalLogit"], ["kl takes aligned", "top_k"]),
        (["--losses.hidden", "HiddenMSE"], ["hidden states", "online_assistant=true"]),
        (["--model.init_args.published", "true"], ["kl_everywhere", "online_assistant=true"]),
        (["--model.init_args.published.vision_lora", "true"], ["vision_lora", "model.init_args.lora"]),
    ],
)
def test_what_cannot_be_learnt_is_refused_before_the_first_step(
    chain: Path, given: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(chain, "refused", *given) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("mulcot: error: ")
    for word in words:
        assert word in error
    assert not (chain / "refused" / "checkpoints").exists()


OWN_LOSS = """
from mulcot.callbacks import SoftLoss
from mulcot.losses import forward_kl


class HalfKL(SoftLoss):
    views = ("top_k",)

    def divergence(self, logits, view, temperature):
        return forward_kl(logits, view, temperature) / 2
"""


def test_a_loss_of_one_s_own_lies_in_a_file_of_one_s_own(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_losses.py").write_text(OWN_LOSS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert fit(chain.resolve(), "own_loss", "--losses.half", "my_losses.HalfKL") == 0
    logged = scalars(chain / "own_loss")
    for task in ("reasoning", "classification"):
        assert logged[f"loss/{task}/half"] == pytest.approx([value / 2 for value in logged[f"loss/{task}/kl"]])


OWN_STAGE = """
from stages import StudentStage

class LateStudent(StudentStage):
    def on_train_epoch_start(self):
        self.objective.lambda_soft = self.lambda_soft if self.trainer.current_epoch else 0.0
"""


def test_a_stage_of_one_s_own_lies_in_a_file_of_one_s_own(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that CONTRIBUTING shows."""
    (tmp_path / "my_stages.py").write_text(OWN_STAGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    own = ("--model", "my_stages.LateStudent", "--trainer.max_epochs", 2)
    assert fit(chain.resolve(), "own_stage", *own) == 0
    logged = scalars(chain / "own_stage", "schedule/lambda", "loss/reasoning")
    steps = len(logged["schedule/lambda"]) // 2
    assert logged["schedule/lambda"] == pytest.approx([0.0] * steps + [0.3] * steps)
    assert logged["loss/reasoning/total"][0] == pytest.approx(logged["loss/reasoning/ce"][0])


def test_a_loss_that_is_no_number_stops_before_the_step_and_names_the_posts(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_losses.py").write_text(
        "import torch\nfrom mulcot.callbacks import CrossEntropy\n\n\nclass Broken(CrossEntropy):\n"
        "    def token_loss(self, logits, targets, view):\n"
        "        loss = super().token_loss(logits, targets, view)\n"
        "        return loss if self.progress < 0.5 else torch.where(torch.arange(len(loss)) == 3, torch.inf, loss)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert fit(chain.resolve(), "broken", "--losses.ce", "broken_losses.Broken") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    ids = {json.loads(line)["id"] for line in (chain / "posts/posts/train.jsonl").read_text().splitlines()}
    assert "step 3" in error  # of 5: steps 1 and 2 are in the first half
    assert "the loss ce of the task" in error
    named = error.split("on the posts ")[1].split(";")[0]
    assert named in ids
    logged = scalars(chain / "broken")
    assert all(len(values) == 2 for values in logged.values())
    assert all(torch.isfinite(torch.tensor(values)).all() for values in logged.values())
