"""The report of a run made by hand: every number is worked out here, and the tables are read as text."""

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mulcot.manifests import Manifest, write_manifest
from mulcot.metrics import ClassificationReport
from mulcot.report import COLUMNS, collect, main_report, render, report
from mulcot.types import InputError, MissingInputError

LABELS = ("positive", "neutral", "negative")
GOLD = ["positive"] * 4 + ["neutral"] * 5 + ["negative"]
TRAIN = {"positive": 20, "neutral": 50, "negative": 10}
SYSTEMS = ["majority class", "teacher (as labelled)", "assistant", "student, labels alone", "student, distilled"]


def classification(right: int) -> dict[str, Any]:
    """The first `right` posts are right, the others called negative (the last one neutral)."""
    said = [gold if n < right else "neutral" if gold == "negative" else "negative" for n, gold in enumerate(GOLD)]
    scores = ClassificationReport(LABELS)
    scores.update(said, GOLD)
    return scores.compute()


def reasoning(bleu: float = 0.25, **others: Any) -> dict[str, Any]:
    values = {"bleu": bleu, "sentence_bleu": 0.2, "rouge_l": 0.5, "parse_rate": 0.9, "posts": 10, "references": 10}
    return values | {"agreement_with_gold": 0.7, "agreement_with_answer": 0.8} | others


def trained(
    title: str, seed: int, right: int, rationales: dict[str, Any] | None = None, **others: Any
) -> dict[str, Any]:
    scores = {"classification": classification(right), "reasoning": rationales}
    kind = "assistant" if title == "assistant" else "student"
    values = {"kind": kind, "title": title, "seed": seed, "test": scores, "val": {"classification": classification(9)}}
    return values | {"train_label_counts": TRAIN, "best_epoch": 3} | others


def write(run_dir: Path, stage: str, metrics: dict[str, Any], wall_seconds: float | None = 1.0) -> Path:
    folder = run_dir / stage
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metrics.json"
    path.write_text(json.dumps(metrics), encoding="utf-8")
    if wall_seconds is not None:
        values = {"verb": "fit", "key": "", "inputs": {}, "outputs": {}, "versions": {}, "git_revision": None}
        write_manifest(
            folder, Manifest(**values, seed=0, started="2026-01-01T00:00:00+00:00", wall_seconds=wall_seconds)
        )
    return path


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "demo"
    split = {"posts": 10, "accepted_predicted": 6, "accepted_explained": 2, "failed": {"malformed": 2}}
    splits = {
        name: split | {"requests": 15, "replayed": 0, "teacher_accuracy": 0.75} for name in ("train", "val", "test")
    }
    for seed, right, bleu in ((0, 7, 0.2), (1, 8, 0.3), (2, 10, 0.4)):
        write(run, f"student-seed{seed}", trained("student, distilled", seed, right, reasoning(bleu)), 754)
        write(run, f"alone-seed{seed}", trained("student, labels alone", seed, right - 2, reasoning()), 7384.2)
    write(run, "teacher", {"kind": "teacher", "title": "teacher", "splits": splits}, 4.25)
    write(run, "assistant", trained("assistant", 0, 9, reasoning(0.35)), 59.0)
    refused = {"wrong": 900, "known": 380}
    write(run, "augment", {"kind": "augment", "posts": 930, "sampled": 1860, "kept": 580, "refused": refused})
    cache = {"kind": "soft_labels", "tokens": 1234567, "bytes_per_token": 387.5, "kept_mass": 1.0000002}
    write(run, "soft_labels", cache)
    return run


def shown(result: dict[str, Any], width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    render(result, console)
    return console.export_text()


def system(result: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [system for system in result["systems"] if system["system"] == name]
    return found


def test_mean_and_standard_deviation_by_hand(run_dir):
    scores = system(collect(run_dir), "student, distilled")["scores"]
    mean = (0.7 + 0.8 + 1.0) / 3
    sd = math.sqrt(((0.7 - mean) ** 2 + (0.8 - mean) ** 2 + (1.0 - mean) ** 2) / 2)
    assert scores["accuracy"] == {"mean": pytest.approx(mean), "sd": pytest.approx(sd), "n": 3}
    assert scores["bleu"] == {"mean": pytest.approx(0.3), "sd": pytest.approx(0.1), "n": 3}
    assert scores["parse_rate"] == {"mean": pytest.approx(0.9), "sd": pytest.approx(0.0), "n": 3}


def test_one_seed_has_no_standard_deviation(run_dir):
    assert system(collect(run_dir), "assistant")["scores"]["accuracy"] == {"mean": 0.9, "sd": None, "n": 1}


def test_a_seed_without_a_number_is_counted(run_dir):
    write(run_dir, "student-seed2", trained("student, distilled", 2, 10, None))
    result = collect(run_dir)
    scores = system(result, "student, distilled")["scores"]
    assert scores["bleu"] == {"mean": pytest.approx(0.25), "sd": pytest.approx(math.sqrt(0.005)), "n": 2}
    assert scores["accuracy"]["n"] == 3
    assert shown(result).count("n = 2") == 5


def test_the_systems_stand_in_the_order_of_the_method(run_dir):
    write(run_dir, "aaa", trained("student, another loss", 0, 8))
    assert [system["system"] for system in collect(run_dir)["systems"]] == [*SYSTEMS, "student, another loss"]


def test_the_majority_class_is_that_of_the_training_posts(run_dir):
    # neutral: 5 of 10 test posts, precision 1/2, recall 1, F1 2/3; the two other labels 0.
    row = system(collect(run_dir), "majority class")
    assert row["label"] == "neutral"
    assert {name: score and score["mean"] for name, score in row["scores"].items()} == {
        **dict.fromkeys(COLUMNS),
        "accuracy": 0.5,
        "weighted_f1": pytest.approx(1 / 3),
        "macro_f1": pytest.approx(2 / 9),
    }
    assert row["confusion"]["positive"] == {"positive": 0, "neutral": 4, "negative": 0}


def test_the_majority_class_may_be_rare_in_the_test_split(tmp_path):
    write(tmp_path, "student", trained("student, distilled", 0, 8, train_label_counts={"neutral": 1, "negative": 2}))
    assert system(collect(tmp_path), "majority class")["scores"]["accuracy"]["mean"] == 0.1


def test_the_teacher_is_judged_on_the_test_split(run_dir):
    row = system(collect(run_dir), "teacher (as labelled)")
    measured = {name: score["mean"] for name, score in row["scores"].items() if score}
    assert measured == {"accuracy": 0.75, "parse_rate": 0.8}


def test_the_confusion_matrix_sums_over_seeds(run_dir):
    # Of 10 posts (4 positive, 5 neutral, 1 negative) the first 7, 8 and 10 are right.
    confusion = system(collect(run_dir), "student, distilled")["confusion"]
    assert confusion == {
        "positive": {"positive": 12, "neutral": 0, "negative": 0},
        "neutral": {"positive": 0, "neutral": 3 + 4 + 5, "negative": 2 + 1},
        "negative": {"positive": 0, "neutral": 2, "negative": 1},
    }


def test_the_numbers_are_written_with_every_seed(run_dir, capsys):
    result = report(run_dir)
    written = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    assert written == result == collect(run_dir)
    runs = system(written, "student, distilled")["runs"]
    assert [(run["stage"], run["seed"], run["scores"]["accuracy"]) for run in runs] == [
        ("student-seed0", 0, 0.7),
        ("student-seed1", 1, 0.8),
        ("student-seed2", 2, 1.0),
    ]
    assert [stage["stage"] for stage in written["stages"]][:4] == ["teacher", "assistant", "augment", "soft_labels"]
    assert written["stages"][0]["wall_seconds"] == 4.25
    assert written["command"] == f"mulcot report --run_dir {run_dir}"
    assert "student, distilled" in capsys.readouterr().out


def test_the_verb_writes_where_it_is_told(run_dir, tmp_path, capsys):
    out = tmp_path / "elsewhere" / "numbers.json"
    assert main_report(["--run_dir", str(run_dir), "--out", str(out)]) == 0
    assert json.loads(out.read_text(encoding="utf-8")) == collect(run_dir)
    assert not (run_dir / "metrics.json").exists()
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


def test_a_place_that_cannot_be_written_is_named(run_dir):
    (run_dir / "file").touch()
    with pytest.raises(InputError, match=r"file/out\.json: the numbers cannot be written there"):
        report(run_dir, run_dir / "file" / "out.json")


def test_the_tables_are_readable_at_100_columns(run_dir):
    lines = shown(collect(run_dir)).splitlines()
    assert max(map(len, lines)) <= 100
    comparison = lines[lines.index("test split") + 1 : lines.index("10 posts; mean ± standard deviation over seeds")]
    headings, rows = comparison[:3], [re.split(r"\s{2,}", line.strip()) for line in comparison[4:]]
    assert {"accuracy", "F1", "BLEU", "ROUGE-L", "parse", "rate", "own", "gold"} <= set(" ".join(headings).split())
    assert rows == [
        ["majority class", "0.500", "0.333", "0.222", "—", "—", "—", "—", "—"],
        ["teacher (as labelled)", "0.750", "—", "—", "—", "—", "0.800", "—", "—"],
        ["assistant", "0.900", "0.855", "0.636", "0.350", "0.500", "0.900", "0.700", "0.800"],
        ["1 seed"],
        ["student, labels alone", "0.633", "0.664", "0.510", "0.250", "0.500", "0.900", "0.700", "0.800"],
        ["3 seeds", "± 0.153", "± 0.129", "± 0.086", *["± 0.000"] * 5],
        ["student, distilled", "0.833", "0.844", "0.719", "0.300", "0.500", "0.900", "0.700", "0.800"],
        ["3 seeds", "± 0.153", "± 0.139", "± 0.245", "± 0.100", *["± 0.000"] * 4],
    ]
    confusion = lines[lines.index("student, distilled: posts by gold and predicted label, summed over 3 seeds") + 3 :]
    assert [line.split() for line in confusion] == [
        ["positive", "12", "0", "0"],
        ["neutral", "0", "12", "3"],
        ["negative", "0", "2", "1"],
    ]


def test_a_narrow_terminal_gets_every_number_whole(run_dir):
    wide, narrow = (shown(collect(run_dir), width) for width in (100, 80))
    assert max(map(len, narrow.splitlines())) <= 80
    assert narrow.count("test split") == 2
    assert narrow.count("student, distilled  ") == 2
    numbers = [sorted(re.findall(r"(?:± )?\d\.\d{3}|—", text)) for text in (wide, narrow)]
    assert numbers[0] == numbers[1]


def test_the_stages_say_what_they_made(run_dir):
    text = " ".join(shown(collect(run_dir)).split())
    made = "24 rationales for 30 posts (18 predicted, 6 explained), 45 requests; without one: 6 malformed"
    assert f"teacher 4.2 s {made}" in text
    assert "augment 1.0 s 580 further rationales of 1,860 sampled for 930 posts" in text
    assert "soft_labels 1.0 s 1,234,567 soft labels, 388 bytes each, 100.0% of the probability" in text
    assert "assistant 59.0 s assistant, seed 0: accuracy 0.900 (val), 0.900 (test)" in text
    assert "student-seed0 13 min student, distilled, seed 0" in text
    assert "alone-seed0 2 h 03 min" in text
    assert "summed over 3 seeds" in text
    assert "not run" not in text
    assert "note:" not in text


def test_the_chain_says_what_is_missing_and_in_which_order(run_dir):
    names = ["models", "student-seed1", "student-seed0", "assistant", "student-seed3", "posts", "report"]
    steps = [{"name": name, "verb": "report" if name == "report" else "fit", "after": []} for name in names]
    (run_dir / "chain.json").write_text(json.dumps({"config": "demo.yaml", "steps": steps}), encoding="utf-8")
    write(run_dir, "models", {}).unlink()
    result = collect(run_dir)
    assert result["not_run"] == ["student-seed3", "posts"]
    assert [stage["stage"] for stage in result["stages"]][:4] == [
        "student-seed1",
        "student-seed0",
        "assistant",
        "teacher",
    ]
    assert "not run: student-seed3, posts" in shown(result)


def test_a_run_with_one_stage_has_its_rows_alone(tmp_path):
    write(tmp_path, "augment", {"kind": "augment", "posts": 3, "sampled": 3, "kept": 1, "refused": {"wrong": 2}})
    result = collect(tmp_path)
    assert result["systems"] == []
    assert "test split" not in shown(result)


def test_a_stage_that_is_not_finished_or_not_tested_is_noted(run_dir):
    write(run_dir, "late", trained("student, late", 0, 8), None)
    write(run_dir, "untested", trained("student, untested", 0, 8, test=None))
    result = collect(run_dir)
    assert result["notes"] == ["late has not finished (no manifest.json)", "untested has not been tested"]
    assert "student, untested" not in [system["system"] for system in result["systems"]]
    assert re.search(r"late +not finished +student, late, seed 0", shown(result))


def test_systems_that_saw_other_posts_are_noted(run_dir):
    other = ClassificationReport(LABELS)
    other.update(["positive"], ["positive"])
    odd = trained("student, odd", 0, 8) | {"test": {"classification": other.compute(), "reasoning": None}}
    write(run_dir, "odd", odd | {"train_label_counts": {"positive": 1}})
    assert collect(run_dir)["notes"] == [
        "not tested on the same posts as assistant: odd",
        "not trained on the same posts as assistant: odd",
    ]


def test_brackets_in_names_are_no_markup(tmp_path):
    write(tmp_path, "x[b]", trained("student [bold]brave[/bold]", 0, 8))
    text = shown(collect(tmp_path))
    assert "x[b]" in text
    assert "[bold]brave[/bold]" in " ".join(text.split())


def test_a_run_without_metrics_says_what_makes_them(tmp_path):
    for run in (tmp_path, tmp_path / "absent"):
        with pytest.raises(
            MissingInputError, match=rf"{re.escape(str(run))}: .*`mulcot run --config demo\.yaml`"
        ) as error:
            collect(run)
        assert error.value.exit_code == 2


def test_a_second_stage_of_one_seed_is_a_system_of_its_own(run_dir):
    before = {system["system"]: system for system in collect(run_dir)["systems"]}
    write(run_dir, "twin", trained("student, distilled", 1, 8))
    after = {system["system"]: system for system in collect(run_dir)["systems"]}
    twin = after.pop("student, distilled (twin)")
    assert [run["stage"] for run in twin["runs"]] == ["twin"]
    assert after == before


def test_a_training_label_without_a_row_is_refused(tmp_path):
    write(tmp_path, "s", trained("student, distilled", 0, 8, train_label_counts={"mixed": 4}))
    with pytest.raises(InputError, match=r"s/metrics\.json: train_label_counts holds 'mixed'.*positive, neutral, neg"):
        collect(tmp_path)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("", "Invalid JSON"),
        ('{"kind": "student", "ti', "Invalid JSON"),
        ("[]", "the file: "),
        ('{"posts": 3}', "kind"),
        ('{"kind": "dragon"}', "kind"),
        ('{"kind": "augment", "posts": 3, "sampled": 3, "kept": 1.5, "refused": {}}', "augment.kept: "),
        ('{"kind": "augment", "posts": 3, "sampled": 3, "refused": {}}', "augment.kept: "),
        (json.dumps(trained("student", 0, 8, reasoning(1.5))), "student.test.reasoning.bleu: "),
        (json.dumps(trained("student", 0, 8, reasoning(math.nan))), "student.test.reasoning.bleu: "),
        (json.dumps(trained("student", 0, 8)).replace('"posts": 10', '"posts": 11'), "add up to the number of posts"),
        (json.dumps(trained("student", 0, 8)).replace('"neutral": ', '"mixed": ', 1), "must be the same labels"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(run_dir, content, where):
    path = run_dir / "student-seed1" / "metrics.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(where)) as error:
        collect(run_dir)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_damaged_manifest_and_a_damaged_chain_are_named(run_dir):
    (run_dir / "chain.json").write_text('{"stages": []}', encoding="utf-8")
    with pytest.raises(InputError, match=r"chain\.json: steps: "):
        collect(run_dir)
    (run_dir / "chain.json").unlink()
    (run_dir / "teacher" / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"teacher/manifest\.json: the manifest is damaged"):
        collect(run_dir)
