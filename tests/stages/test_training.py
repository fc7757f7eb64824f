"""Assistant and student, driven through the command line on a few generated posts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForImageTextToText, AutoProcessor

from mulcot.cli import main
from mulcot.types import RationaleRecord

QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"]


def fit(config: str, *args: object) -> int:
    return main(["fit", "--config", config, *QUICK, *(str(arg) for arg in args)])


def losses(stage: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(stage / "tensorboard"))
    events.Reload()
    names = [tag for tag in events.Tags()["scalars"] if tag.startswith("loss/")]
    return {name: [event.value for event in events.Scalars(name)] for name in names}


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_term_is_logged_by_name_and_the_totals_are_their_weighted_sums(chain: Path) -> None:
    logged = losses(chain / "student")
    assert set(logged) == {
        *("loss/reasoning/ce", "loss/reasoning/kl", "loss/reasoning/total"),
        *("loss/classification/ce", "loss/classification/kl", "loss/classification/total", "loss/total"),
    }
    steps = len(logged["loss/total"])
    assert steps == 2 * 5  # two epochs of 48 posts, 10 a step
    for step in range(steps):
        totals = 0.0
        for task in ("reasoning", "classification"):
            total = 0.7 * logged[f"loss/{task}/ce"][step] + 0.3 * logged[f"loss/{task}/kl"][step]
            assert logged[f"loss/{task}/total"][step] == pytest.approx(total, rel=1e-5)
            totals += total
        assert logged["loss/total"][step] == pytest.approx(totals, rel=1e-5)


def test_training_lowers_every_loss(chain: Path) -> None:
    for name, values in losses(chain / "student").items():
        assert values[-1] < values[0], name


def test_eight_posts_at_once_and_one_by_one_give_the_same_trajectory(chain: Path) -> None:
    common = ("--run_dir", chain, "--data.init_args.posts_per_step", 8, "--trainer.max_epochs", 1)
    assert fit("student.yaml", "--stage", "at_once", "--test_after_fit", "false", *common) == 0
    assert (
        fit(
            *("student.yaml", "--stage", "one_by_one", "--test_after_fit", "false", *common),
            *("--trainer.accumulate_grad_batches", 8),
        )
        == 0
    )
    at_once, one_by_one = losses(chain / "at_once"), losses(chain / "one_by_one")
    assert at_once.keys() == one_by_one.keys()
    for name, values in at_once.items():
        assert len(values) == 6
        assert one_by_one[name] == pytest.approx(values, rel=2e-4), name


def test_bf16_autocast_trains_fp32_weights_from_nearly_the_same_losses(chain: Path) -> None:
    args = ("student.yaml", "--run_dir", chain, "--stage", "bf16", "--test_after_fit", "false")
    assert fit(*args, "--trainer.max_epochs", 1, "--trainer.precision", "bf16-mixed") == 0
    reference, logged = losses(chain / "student"), losses(chain / "bf16")
    for name, values in logged.items():
        assert values[0] == pytest.approx(reference[name][0], rel=0.03), name
    assert logged["loss/total"][-1] < logged["loss/total"][0]
    assert {value.dtype for value in load_file(chain / "bf16" / "model" / "model.safetensors").values()} == {
        torch.float32
    }


def test_a_student_that_is_its_own_assistant_starts_with_no_divergence(chain: Path) -> None:
    assert (
        fit(
            *("student.yaml", "--run_dir", chain, "--stage", "own_assistant", "--test_after_fit", "false"),
            *("--model.init_args.pretrained", chain / "assistant", "--trainer.max_epochs", 1),
        )
        == 0
    )
    logged = losses(chain / "own_assistant")
    for task in ("reasoning", "classification"):
        # What is left is the fp16 rounding of the cache; the cross-entropy says that the assistant is far from 0.
        assert 0 <= logged[f"loss/{task}/kl"][0] < 1e-3
        assert logged[f"loss/{task}/ce"][0] > 0.1


def test_the_model_folder_loads_with_plain_transformers_and_holds_the_best_epoch(chain: Path) -> None:
    folder = chain / "student" / "model"
    model = AutoModelForImageTextToText.from_pretrained(folder)
    AutoProcessor.from_pretrained(folder)
    best = torch.load(chain / "student" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, value in model.named_parameters():
        assert torch.equal(value, best[f"model.{name}"]), name
    assert not any("optimizer" in name for name in load_file(folder / "model.safetensors"))


def test_metrics_and_predictions_agree(chain: Path) -> None:
    metrics = json.loads((chain / "student" / "metrics.json").read_text())
    predictions = lines(chain / "student" / "predictions.jsonl")
    assert len(predictions) == metrics["test"]["classification"]["posts"] == 12
    right = sum(line["label"] == line["gold"] for line in predictions)
    assert metrics["test"]["classification"]["accuracy"] == pytest.approx(right / 12)
    parsed = sum(line["rationale"] is not None for line in predictions)
    assert metrics["test"]["reasoning"]["parse_rate"] == pytest.approx(parsed / 12)
    assert sum(metrics["train_label_counts"].values()) == 48


def test_augmentation_keeps_only_right_and_new_rationales(chain: Path) -> None:
    metrics = json.loads((chain / "augment" / "metrics.json").read_text())
    kept = [RationaleRecord.from_dict(line) for line in lines(chain / "augment" / "rationales-train.jsonl")]  # type: ignore[arg-type]
    refused = lines(chain / "augment" / "rejects-train.jsonl")
    assert metrics["sampled"] == 48 == len(kept) + len(refused)
    assert metrics["kept"] == len(kept)
    assert sum(metrics["refused"].values()) == len(refused)
    gold = {line["id"]: line["label"] for line in lines(chain / "posts" / "posts" / "train.jsonl")}
    assert all(record.rationale.prediction == gold[record.post_id] for record in kept)


def test_the_same_seed_gives_the_same_samples_whatever_the_batch(chain: Path) -> None:
    for stage, batch in (("samples_a", 48), ("samples_b", 7)):
        assert (
            main(
                [
                    *("predict", "--config", "augment.yaml", "--run_dir", str(chain), "--stage", stage),
                    *("--model.init_args.max_new_tokens", "16", "--data.init_args.eval_batch_size", str(batch)),
                    *("--trainer.enable_progress_bar", "false"),
                ]
            )
            == 0
        )
    replies = [lines(chain / stage / "rejects-train.jsonl") for stage in ("samples_a", "samples_b")]
    assert replies[0] == replies[1]
    assert len({line["reply"] for line in replies[0]}) > 40


def test_soft_labels_cover_every_response_token_of_the_training_rows(chain: Path) -> None:
    metrics = json.loads((chain / "soft_labels" / "metrics.json").read_text())
    processor = AutoProcessor.from_pretrained(chain / "assistant" / "model")

    def tokens(text: str) -> int:
        return len(processor.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1  # and the end of turn

    texts = [f'{{"Prediction": "{line["label"]}"}}' for line in lines(chain / "posts" / "posts" / "train.jsonl")]
    for stage in ("teacher", "augment"):
        texts += [
            json.dumps(line["rationale"], ensure_ascii=False)
            for line in lines(chain / stage / "rationales-train.jsonl")
        ]
    assert metrics["tokens"] == sum(tokens(text) for text in texts)
    assert 0 < metrics["kept_mass"] < 1  # 64 ids of some hundreds
