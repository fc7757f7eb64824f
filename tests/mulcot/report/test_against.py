"""Two runs beside each other, joined by post id, with numbers worked out by hand."""

import json
import re
from dataclasses import replace

import pytest

from mulcot.cli import main
from mulcot.predictions import Prediction, write_predictions
from mulcot.report import compare, main_report
from mulcot.types import MissingInputError

WRONG = {"positive": "neutral", "neutral": "negative", "negative": "neutral"}


def said(gold, right):
    return [label if n in right else WRONG[label] for n, label in enumerate(gold)]


@pytest.fixture
def two(make_run):
    """Run a: the first 8 posts right. Run b: the first 6 and the last right, post p2 missing and p12 added."""
    first, second = make_run("a"), make_run("b")
    gold = first.gold
    first.model("student", "student, distilled", 0, said(gold, range(8)))
    first.model("extra", "student, another", 0, gold)
    folder = second.model("student", "student, distilled", 0, said(gold, [*range(6), 9]))
    rows = [first.prediction(n, label, gold[n]) for n, label in enumerate(said(gold, [*range(6), 9])) if n != 2]
    write_predictions(folder / "predictions.jsonl", [*reversed(rows), first.prediction(12, "neutral", "neutral")])
    for run, epochs in ((first, 3), (second, 5)):
        config = {"trainer": {"max_epochs": epochs, "logger": {"save_dir": f"{run.folder}/student"}}, "losses": None}
        (run.folder / "student" / "config-fit.yaml").write_text(json.dumps(config), encoding="utf-8")
    return first, second


def test_the_same_posts_are_compared(two):
    first, second = two
    result = compare(first.folder, second.folder)
    (found,) = result["differences"]
    (seed,) = found["seeds"]
    # Nine posts in common. a has p0, p1, p3 to p7 right (7), b has p0, p1, p3, p4, p5, p9 right (6).
    assert (found["system"], seed["seed"], seed["posts"]) == ("student, distilled", 0, 9)
    assert (seed["only_first"], seed["only_second"], seed["other_gold"]) == (1, 1, 0)
    assert seed["differences"]["accuracy"]["difference"] == pytest.approx(1 / 9)
    # p6 and p7 are a's alone, p9 is b's alone: p = 2 * (1 + 3) / 8.
    assert seed["mcnemar"] == {"only_first_right": 1, "only_second_right": 2, "p_value": 1.0}
    assert result["unpaired"] == [f"student, another, seed 0: in {first.folder} alone"]
    mean, (seed,) = found["mean"]["accuracy"], found["seeds"]
    one = seed["differences"]["accuracy"]
    assert mean == {"mean": pytest.approx(1 / 9), "sd": None, "n": 1, "low": one["low"], "high": one["high"]}


def test_swapped_runs_swap_the_sign(two):
    first, second = two
    there, back = compare(first.folder, second.folder), compare(second.folder, first.folder)
    change = [one["differences"][0]["seeds"][0]["differences"]["macro_f1"] for one in (there, back)]
    assert change[0]["difference"] == pytest.approx(-change[1]["difference"])
    assert change[0]["low"] == pytest.approx(-change[1]["high"], abs=0.03)


def test_settings_that_differ_are_listed_once_and_places_are_none(two):
    first, second = two
    assert compare(first.folder, second.folder)["settings"] == [
        {"setting": "fit.trainer.max_epochs", "stages": ["student"], "first": "3", "second": "5"}
    ]


def test_a_run_against_itself_differs_in_nothing(two):
    first, _ = two
    result = compare(first.folder, first.folder)
    assert result["settings"] == []
    assert result["unpaired"] == []
    for found in result["differences"]:
        for seed in found["seeds"]:
            assert seed["differences"]["accuracy"] == {"difference": 0, "low": 0, "high": 0}
            assert seed["mcnemar"] == {"only_first_right": 0, "only_second_right": 0, "p_value": 1.0}


def test_the_verb_prints_and_writes_the_comparison(two, read_page, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # however long the folders' names are
    first, second = two
    assert main(["report", "--run_dir", str(first.folder), "--against", str(second.folder)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "+0.111" in shown
    assert "fit.trainer.max_epochs 3 5 student" in shown
    assert "2 left out" in shown
    assert "note: student, another, seed 0: in" in shown
    written = json.loads((first.folder / "against-b.json").read_text(encoding="utf-8"))
    assert written == compare(first.folder, second.folder)
    assert not (first.folder / "metrics.json").exists()
    page = read_page(first.folder / "against-b.html")
    (row,) = page.table(f"Paired differences: {first.folder} minus {second.folder}")[1:]
    assert row[1].words == "9 2 left out"
    assert row[2].value == pytest.approx(1 / 9)
    assert [row[5].words, row[6].value] == ["2 : 1", 1.0]
    settings = page.table("Settings that differ")
    assert [cell.words for cell in settings[1]] == ["fit.trainer.max_epochs", "3", "5", "student"]
    systems = [[cell.words for cell in row] for row in page.table("Test split: systems of both runs")]
    # All four positive, four of five neutral: F1 1, 0.8 and 0.
    mine = [row for row in systems if row[0] == f"student, distilled {first.folder}"]
    assert mine == [[f"student, distilled {first.folder}", "1 10 posts", "0.800", "0.800", "0.600"]]
    assert [row[1] for row in systems if row[0] == str(second.folder)][-1:] == ["absent"]
    assert f"student, another, seed 0: in {first.folder} alone" in page.text
    for element in page.everything():
        assert element.tag != "script"


def test_it_writes_where_it_is_told(two, tmp_path, capsys):
    first, second = two
    out = tmp_path / "elsewhere" / "both.json"
    main_report(["--run_dir", str(first.folder), "--against", str(second.folder), "--out", str(out)])
    assert out.exists()
    assert out.with_suffix(".html").exists()
    assert list(first.folder.glob("against*")) == []


def test_a_model_without_predictions_is_counted_as_unpaired(two):
    first, second = two
    (second.folder / "student" / "predictions.jsonl").unlink()
    result = compare(first.folder, second.folder)
    assert result["differences"] == []
    assert result["unpaired"][1:] == ["student, distilled, seed 0: without predictions in one of the runs"]


def test_posts_with_two_gold_labels_are_left_out(two):
    first, second = two

    def other(row: Prediction) -> Prediction:
        return replace(row, gold="negative") if row.answer.post_id == "p0" else row

    second.model("student", "student, distilled", 0, said(first.gold, range(6)), change=other)
    (found,) = compare(first.folder, second.folder)["differences"]
    assert (found["seeds"][0]["posts"], found["seeds"][0]["other_gold"]) == (9, 1)


def test_a_run_that_is_not_there_is_named(two, tmp_path):
    first, _ = two
    with pytest.raises(MissingInputError, match=re.escape(str(tmp_path / "none"))):
        compare(first.folder, tmp_path / "none")
