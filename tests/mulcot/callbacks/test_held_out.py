"""The losses on validation posts: equal to what plain logits give, and without any trace in what is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional

from data_modules.readers import Table
from mulcot.cli import main
from mulcot.models import load_model, load_processor
from mulcot.rows import RowCollator, RowEncoder, TextRow
from mulcot.types import DEFAULT_LABELS, prediction_json

T = 2.0


@pytest.fixture(scope="module")
def given(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The chain's posts with one validation post less that has a gold label, and references without two of them."""
    folder, posts = tmp_path_factory.mktemp("given"), chain / "posts" / "posts"
    lines = [json.loads(line) for line in (posts / "val.jsonl").read_text().splitlines()]
    lines[3] = {key: value for key, value in lines[3].items() if key != "label"}
    (folder / "val.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    references = (chain / "teacher" / "rationales-val.jsonl").read_text().splitlines(keepends=True)
    (folder / "references.jsonl").write_text("".join(references[2:]))
    files = {split: posts / f"{split}.jsonl" for split in ("train", "test")}
    return {**files, "val": folder / "val.jsonl", "references": folder / "references.jsonl"}


def fit(chain: Path, stage: str, given: dict[str, Path], *args: object) -> dict[str, list[float]]:
    """Trains an adapter, whose dropout takes random numbers, for an epoch; gives back what was logged."""
    files = json.dumps({split: str(given[split]) for split in ("train", "val", "test")})
    command = [
        *("fit", "--config", "student.yaml", "--config", "models/lora.yaml", "--run_dir", chain, "--stage", stage),
        *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", 1),
        *("--data.init_args.posts.init_args.files", files, "--test_after_fit", "false", *args),
        *("--data.init_args.references", f'["{given["references"]}"]', "--data.init_args.eval_batch_size", 5),
    ]
    assert main([str(part) for part in command]) == 0
    events = EventAccumulator(str(chain / stage / "tensorboard"))
    events.Reload()
    names = [tag for tag in events.Tags()["scalars"] if tag.startswith(("loss/", "val/"))]
    return {name: [event.value for event in events.Scalars(name)] for name in names}


def rows_of(chain: Path, given: dict[str, Path], encoder: RowEncoder) -> dict[str, list[TextRow]]:
    posts = {post.id: post for post in Table({"val": given["val"]}, chain / "posts/posts/images").read("val")}
    records = [json.loads(line) for line in given["references"].read_text().splitlines()]
    written = {record["post_id"]: json.dumps(record["rationale"], ensure_ascii=False) for record in records}
    return {
        "reasoning": [encoder.row(posts[post_id], "reasoning", text) for post_id, text in written.items()],
        "classification": [
            encoder.row(post, "classification", prediction_json(post.label)) for post in posts.values() if post.label
        ],
    }


def expected(chain: Path, given: dict[str, Path], student: Path) -> dict[str, float]:
    """Cross-entropy and T² · KL by the textbook, post by post, from whole logits."""
    encoder = RowEncoder(load_processor(str(chain / "models" / "student")), DEFAULT_LABELS)
    models: list[Any] = [load_model(str(folder)).eval() for folder in (student, chain / "assistant")]
    found = {}
    for task, rows in rows_of(chain, given, encoder).items():
        ce, kl, tokens = 0.0, 0.0, 0
        for row in rows:
            batch = RowCollator(encoder).batch([row])
            with torch.no_grad():
                mine, theirs = [model(**batch.inputs).logits[0, batch.positions] for model in models]
            ce += float(functional.cross_entropy(mine, batch.targets, reduction="sum"))
            p = (theirs / T).log_softmax(-1)
            kl += T**2 * float(functional.kl_div((mine / T).log_softmax(-1), p, log_target=True, reduction="sum"))
            tokens += len(row.response_ids)
        found |= {f"val/loss/{task}/ce": ce / tokens, f"val/loss/{task}/kl": kl / tokens}
    return found


def test_the_values_are_those_of_plain_logits_and_training_does_not_know_of_them(
    chain: Path, given: dict[str, Path]
) -> None:
    watched = fit(chain, "watched", given, "--held_out.enabled", "true")
    for place, student in ((0, chain / "models" / "student"), (1, chain / "watched" / "model")):
        values = {name: values[place] for name, values in watched.items() if name.startswith("val/loss/")}
        assert values == pytest.approx(expected(chain, given, student), rel=1e-4)
    assert fit(chain, "unwatched", given) == {
        name: values for name, values in watched.items() if not name.startswith("val/loss/")
    }


def test_without_soft_terms_no_assistant_is_asked_for(chain: Path, given: dict[str, Path]) -> None:
    overlay = ["--config", "experiment/labels_only.yaml", "--held_out.enabled", "true"]
    watched = fit(chain, "watched_labels", given, *overlay)
    assert {name for name in watched if name.startswith("val/loss/")} == {"val/loss/classification/ce"}
