"""Assistant and student with heads of different length, and with different tokenizers, through the command line."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mulcot.cli import main
from mulcot.models import load_model, load_processor

QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"]


def fit(chain: Path, stage: str, *args: object) -> int:
    common = ["fit", "--config", "student.yaml", "--run_dir", chain, "--stage", stage, *QUICK]
    return main([str(arg) for arg in (*common, "--test_after_fit", "false", *args)])


def losses(stage: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(stage / "tensorboard"))
    events.Reload()
    names = [tag for tag in events.Tags()["scalars"] if tag.startswith("loss/")]
    return {name: [event.value for event in events.Scalars(name)] for name in names}


@pytest.fixture(scope="module")
def longer_head(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student with a head of 64 further rows, behind the same tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "longer"
    student = load_model(str(chain / "models" / "student"))
    rows = student.get_output_embeddings().weight.shape[0]  # type: ignore[operator, union-attr]
    student.resize_token_embeddings(rows + 64)  # type: ignore[operator]
    student.save_pretrained(folder)  # type: ignore[operator]
    load_processor(str(chain / "models" / "student")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("beside", [False, True])
def test_heads_of_different_length_are_cut_to_the_ids_that_both_have(
    chain: Path, longer_head: Path, beside: bool
) -> None:
    stage = f"longer_{beside}"
    online = ["--model.init_args.online_assistant", "true", "--data.init_args.soft_labels", "null"] if beside else []
    assert fit(chain, stage, "--model.init_args.pretrained", longer_head, "--trainer.max_epochs", 2, *online) == 0
    logged = losses(chain / stage)
    for task in ("reasoning", "classification"):
        assert logged[f"loss/{task}/kl"][-1] < logged[f"loss/{task}/kl"][0]


def test_different_tokenizers_are_refused_in_words(
    chain: Path, other_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for online in (["--model.init_args.online_assistant", "true", "--data.init_args.soft_labels", "null"], []):
        assert fit(chain, "refused", "--model.init_args.assistant", other_tokenizer, *online) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("mulcot: error: ")
        assert "tokenizers" in error
        assert "UniversalLogit" in error
        assert not (chain / "refused" / "checkpoints").exists()


def test_an_assistant_with_another_tokenizer_teaches_by_universal_logits(chain: Path, other_tokenizer: Path) -> None:
    overlay = ["--config", "losses/universal_logit.yaml", "--model.init_args.assistant", other_tokenizer]
    # λ=1: what falls is the cross-tokenizer loss by itself.
    assert fit(chain, "across", *overlay, "--model.init_args.lambda_soft", 1.0, "--trainer.max_epochs", 2) == 0
    logged = losses(chain / "across")
    assert set(logged) == {
        "loss/total",
        *(f"loss/{task}/{name}" for task in ("reasoning", "classification") for name in ("uld", "total")),
    }
    for task in ("reasoning", "classification"):
        values = logged[f"loss/{task}/uld"]
        assert values[-1] < values[0]
        assert logged[f"loss/{task}/total"] == pytest.approx(values, rel=1e-6)
