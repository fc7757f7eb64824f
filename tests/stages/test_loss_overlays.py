"""Every overlay of conf/losses trains the tiny chain, and its term is seen in training and on held-out posts."""

from math import isfinite
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mulcot.cli import main

QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"]
LOSSES = Path(__file__).resolve().parents[2] / "conf" / "losses"
OVERLAYS = sorted(path.stem for path in LOSSES.glob("*.yaml"))
TASKS = ("reasoning", "classification")


def fit(chain: Path, stage: str, *args: object) -> int:
    common = ["fit", "--config", "student.yaml", "--run_dir", chain, "--stage", stage, *QUICK]
    return main([str(arg) for arg in (*common, "--trainer.max_epochs", 1, "--test_after_fit", "false", *args)])


def scalars(stage: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(stage / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def terms(overlay: str) -> dict[str, str]:
    """The class of every loss of the fit, by name: those of student.yaml under the overlay."""
    files = [LOSSES.parent / "student.yaml", LOSSES / f"{overlay}.yaml"]
    given = {name: term for path in files for name, term in yaml.safe_load(path.read_text())["losses"].items()}
    return {name: term["class_path"] for name, term in given.items() if term}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_trains_and_its_terms_fall_on_posts_that_are_not_trained_on(
    chain: Path, other_tokenizer: Path, overlay: str
) -> None:
    names = terms(overlay)
    overlays = ["--config", f"losses/{overlay}.yaml", "--config", "experiment/held_out.yaml"]
    other = ["--model.init_args.assistant", other_tokenizer] if "UniversalLogit" in names.values() else []
    # λ=1 without hard labels: what falls falls by the overlay's own doing.
    alone = ["--model.init_args.lambda_soft", 1, "--losses.ce", "null"]
    assert fit(chain, f"with_{overlay}", *overlays, *alone, *other) == 0
    logged = scalars(chain / f"with_{overlay}")
    for task in TASKS:
        for name in names.keys() - {"ce"}:
            assert len(logged[f"loss/{task}/{name}"]) == 5, name
            assert all(isfinite(value) for _, value in logged[f"loss/{task}/{name}"]), name
            (first, before), (last, after) = logged[f"val/loss/{task}/{name}"]
            assert (first, last) == (0, 4)
            assert after < before, name
