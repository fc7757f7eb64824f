"""Whole stages on data as users bring them: with wrong rows, converted, with other labels, without aspects."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mulcot.cli import main

LABELS_ONLY = ["--config", "student.yaml", "--config", "experiment/labels_only.yaml"]
QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
QUICK += ["--trainer.log_every_n_steps", "1"]

Row = dict[str, Any]
DAMAGE: list[Callable[[Row, Path], Row | str]] = [
    lambda row, images: row | {"label": "glad"},
    lambda row, images: row | {"text": ""},
    lambda row, images: row | {"image": "../posts/train.jsonl"},
    lambda row, images: row | {"image": "gone.png"},
    lambda row, images: row | {"id": "train-0"},
    lambda row, images: row | {"aspect": "nowhere in the text"},
    lambda row, images: row | {"label": 1.0},
    lambda row, images: json.dumps(row)[:40],
    lambda row, images: row | {"image": broken(images / "cut.jpg", 0.5)},
    lambda row, images: row | {"image": broken(images / "empty.jpg", 0.0)},
]


def broken(path: Path, share: float) -> str:
    """A picture of which only the first share of bytes is there."""
    Image.effect_noise((64, 64), 50).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path.name


@pytest.fixture
def table(tmp_path: Path) -> dict[str, Any]:
    """300 training posts, every tenth of which is wrong in one of ten ways, and 20 for validation."""
    images = tmp_path / "images"
    images.mkdir()
    for label, colour in (("positive", "gold"), ("neutral", "grey"), ("negative", "navy")):
        Image.new("RGB", (56, 56), colour).save(images / f"{label}.png")
    files = {}
    for split, count in (("train", 300), ("val", 20), ("test", 20)):
        lines = []
        for number in range(count):
            label = ("positive", "neutral", "negative")[number % 3]
            row = {
                "id": f"{split}-{number}",
                "text": f"rain in May {number}",
                "image": f"{label}.png",
                "aspect": "May",
                "label": label,
            }
            wrong = split == "train" and number % 10 == 9
            damaged = DAMAGE[number // 10 % 10](row, images) if wrong else row
            lines.append(damaged if isinstance(damaged, str) else json.dumps(damaged))
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(lines))
    return {"class_path": "Table", "init_args": {"files": files, "image_root": str(images)}}


def fit(embedded: Path, folder: Path, posts: dict[str, Any], *options: object) -> int:
    given = ["fit", *LABELS_ONLY, "--run_dir", embedded, "--stage_dir", folder, *QUICK]
    return main([*map(str, given), "--data.init_args.posts", json.dumps(posts), *map(str, options)])


def test_the_first_wrong_row_stops_a_run(
    embedded: Path, tmp_path: Path, table: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(embedded, tmp_path / "stage", table) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == (
        f"mulcot: error: {tmp_path}/train.jsonl, line 10, field 'label': unknown label 'glad'; "
        "use one of 'positive', 'neutral', 'negative', or name it in `labels`"
    )


def test_wrong_rows_are_left_out_counted_and_listed(
    embedded: Path, tmp_path: Path, table: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    stage = tmp_path / "run" / "stage"
    assert fit(embedded, stage, table, "--data.init_args.on_bad_row", "skip") == 0
    listed = [json.loads(line) for line in (stage / "bad_rows.jsonl").read_text().splitlines()]
    assert len(listed) == 30
    assert sorted(row["line"] for row in listed) == list(range(10, 301, 10))
    fields = ["label", "text", "image", "image", "id", "aspect", "label", None, "image", "image"]
    by_line = {row["line"]: row["field"] for row in listed}
    assert [by_line[line] for line in range(10, 301, 10)] == fields * 3
    assert all(row["file"] == f"{tmp_path}/train.jsonl" and row["problem"] and row["remedy"] for row in listed)
    metrics = json.loads((stage / "metrics.json").read_text())
    assert metrics["left_out"] == {"wrong rows": 30}
    # Row n has label n % 3, and those left out are 9, 19, ...: ten of each label. A shifted label would change this.
    assert metrics["train_label_counts"] == {"positive": 90, "neutral": 90, "negative": 90}
    assert metrics["optimizer_steps"] == 27
    assert f"left out of the data: 30 wrong rows (wrong rows are listed in {stage}/bad_rows.jsonl)" in caplog.text


def test_the_report_says_what_was_left_out(
    embedded: Path, tmp_path: Path, table: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    given = ["--posts", json.dumps(table), "--out", str(run / "data"), "--on_bad_row", "skip"]
    assert main(["data", "convert", *given]) == 0
    converted = {"class_path": "Converted", "init_args": {"folder": str(run / "data")}}
    assert fit(embedded, run / "stage", converted) == 0
    metrics = json.loads((run / "stage" / "metrics.json").read_text())
    assert metrics["train_label_counts"] == {"positive": 90, "neutral": 90, "negative": 90}
    assert "left_out" not in metrics, "the converted data are right"
    capsys.readouterr()
    assert main(["report", "--run_dir", str(run)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "310 posts (train 270, val 20, test 20)" in shown
    assert "left out of the data: 30 wrong rows (by data)" in shown


def test_a_conversion_gives_the_same_training_as_its_source(
    embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Losses of every step and answers to every post: from the table, converted, and converted with tokens.

    Pictures of 1 to 4 tokens: an order or a budget that counts them in one form and not in another would show.
    """
    folder = embedded / "posts" / "posts"
    images = tmp_path / "images"
    images.mkdir()
    for number, path in enumerate(sorted((folder / "images").iterdir())):
        Image.open(path).resize(((56, 56), (28, 28), (84, 28), (28, 56))[number % 4]).save(images / path.name)
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "val", "test")}
    source = {"class_path": "Table", "init_args": {"files": files, "image_root": str(images)}}
    options = ["--data.init_args.length_pool", 4, "--data.init_args.eval_max_tokens", 2000]
    given = ["--posts", json.dumps(source)]
    model = ["--model", str(embedded / "models" / "student")]
    assert main(["data", "convert", *given, "--out", str(tmp_path / "plain")]) == 0
    assert main(["data", "convert", *given, "--out", str(tmp_path / "tokens"), *model]) == 0
    assert main(["data", "convert", *given, "--out", str(tmp_path / "inside"), "--embed_images"]) == 0
    made = {}
    for name in ("source", "plain", "tokens", "inside"):
        posts = (
            source if name == "source" else {"class_path": "Converted", "init_args": {"folder": f"{tmp_path}/{name}"}}
        )
        assert fit(embedded, tmp_path / "stages" / name, posts, *options) == 0
        lines = (tmp_path / "stages" / name / "predictions.jsonl").read_text().splitlines()
        made[name] = [
            json.loads(line) | {"image": ""} for line in lines
        ]  # a picture inside a table is named by its row
    assert made["plain"] == made["tokens"] == made["inside"] == made["source"]
    capsys.readouterr()


@pytest.mark.parametrize("count", [2, 40])
def test_any_number_of_labels(embedded: Path, tmp_path: Path, count: int) -> None:
    labels = [f"kind {number}" for number in range(count)]
    Image.new("RGB", (56, 56), "gold").save(tmp_path / "a.png")
    files = {}
    for split in ("train", "val", "test"):
        rows = [
            {"id": f"{split}{n}", "text": f"words {n}", "image": "a.png", "label": labels[n % count]}
            for n in range(count)
        ]
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    posts = {"class_path": "Table", "init_args": {"files": files, "image_root": str(tmp_path), "labels": labels}}
    options = ["--model.init_args.labels", json.dumps(labels), "--data.init_args.eval_max_tokens", 4000]
    assert fit(embedded, tmp_path / "stage", posts, *options) == 0
    answers = [json.loads(line) for line in (tmp_path / "stage" / "predictions.jsonl").read_text().splitlines()]
    assert [answer["post_id"] for answer in answers] == [f"test{n}" for n in range(count)], "in the split's order"
    for answer in answers:
        assert list(answer["probabilities"]) == labels
        assert sum(answer["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)


def test_a_label_that_the_stage_does_not_know_is_named(
    embedded: Path, tmp_path: Path, table: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data.init_args.on_bad_row", "skip", "--model.init_args.labels", '["positive", "negative"]']
    assert fit(embedded, tmp_path / "stage", table, *options) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "post train-1 has the label 'neutral', which is none of the stage's labels (positive, negative)" in error
