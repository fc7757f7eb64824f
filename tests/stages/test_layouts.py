"""Whole stages in the shared layout and in the paired one, through the command line: the same numbers come out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mulcot.models.forward
from mulcot.cli import main
from mulcot.losses import TopK
from mulcot.soft_labels import SoftLabelCache

QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]


def run(verb: str, config: str, *args: object) -> None:
    assert main([verb, "--config", config, *QUICK, *(str(arg) for arg in args)]) == 0


def losses(stage: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(stage / "tensorboard"))
    events.Reload()
    names = [tag for tag in events.Tags()["scalars"] if tag.startswith("loss/")]
    return {name: [event.value for event in events.Scalars(name)] for name in names}


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("paired", ("--data.init_args.layout", "paired")),
        ("packed", ("--data.init_args.row_tokens", 700)),
        ("beside", ("--model.init_args.online_assistant", "true", "--data.init_args.soft_labels=null")),
        (
            "paired-beside",
            (
                *("--model.init_args.online_assistant", "true", "--data.init_args.soft_labels=null"),
                *("--data.init_args.layout", "paired"),
            ),
        ),
    ],
)
def test_the_trajectory_does_not_depend_on_the_layout(chain: Path, name: str, given: tuple[object, ...]) -> None:
    """A cache holds 64 ids of each token: the soft terms agree where both have one, or both the assistant itself."""
    common = ("--run_dir", chain, "--test_after_fit", "false", "--trainer.max_epochs", 2)
    run("fit", "student.yaml", *common, "--stage", name, "--trainer.log_every_n_steps", 1, *given)
    mine = losses(chain / name)
    theirs = losses(chain / ("beside" if name == "paired-beside" else "student"))
    assert mine.keys() == theirs.keys()
    for term, values in theirs.items():
        if name != "beside":
            assert mine[term] == pytest.approx(values, rel=3e-4), term
        elif term.endswith("/ce"):
            assert mine[term] == pytest.approx(values, rel=0.05), term


def test_answers_do_not_depend_on_the_layout(chain: Path) -> None:
    for layout in ("shared", "paired"):
        run("test", "student.yaml", "--run_dir", chain, "--data.init_args.layout", layout,
            "--model.init_args.max_new_tokens", 24)  # fmt: skip
        (chain / "student" / "predictions-test.jsonl").rename(chain / f"{layout}.jsonl")
    shared, paired = answers(chain / "shared.jsonl"), answers(chain / "paired.jsonl")
    assert [answer["reply"] for answer in shared] == [answer["reply"] for answer in paired]
    assert any(answer["reply"] for answer in shared)
    for mine, theirs in zip(shared, paired, strict=True):
        assert mine["post_id"] == theirs["post_id"]
        assert mine["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-5)


def test_soft_labels_do_not_depend_on_the_layout(chain: Path) -> None:
    run(
        "predict", "soft_labels.yaml", "--run_dir", chain, "--stage", "soft-paired", "--data.init_args.layout", "paired"
    )
    shared, paired = (SoftLabelCache(chain / name / "cache") for name in ("soft_labels", "soft-paired"))
    assert shared.tokens == paired.tokens
    views = dict(paired.items())
    for key, view in shared.items():
        assert isinstance(view, TopK)
        other = views[key]
        assert isinstance(other, TopK)
        # Ids of nearly equal probability may change places, and the last one with the first that is left out.
        mine, theirs = (each.log_probs.float().sort(dim=-1).values for each in (view, other))
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-3)
        same = (view.ids.sort(dim=-1).values == other.ids.sort(dim=-1).values).float().mean()
        assert float(same) > 0.99


def test_a_model_that_cannot_share_gets_the_paired_layout_and_says_so(
    chain: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mulcot.models.forward, "SHARED_MODELS", ())
    with caplog.at_level("INFO"):
        run("fit", "student.yaml", "--run_dir", chain, "--stage", "fallback", "--trainer.max_epochs", 1,
            "--model.init_args.max_new_tokens", 8)  # fmt: skip
    told = [message for message in caplog.messages if "instead of shared, a step takes longer" in message]
    assert len(told) == 1
    assert "a qwen2_5_vl is not known to compute the same in it" in told[0]
    assert (chain / "fallback" / "metrics.json").is_file()


def test_a_line_of_no_tokens_is_refused(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--run_dir", str(chain), "--stage", "no-line", "--data.init_args.row_tokens", "0"]
    assert main(["fit", "--config", "student.yaml", *QUICK, *given]) == 1
    assert "row_tokens of MultimodalDataModule is 0; it must be 1 or more" in capsys.readouterr().err
