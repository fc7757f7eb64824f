"""Paired differences, with numbers worked out by hand."""

import pytest

from mulcot.predictions import Prediction, read_predictions
from mulcot.report import collect
from mulcot.report.pairs import paired
from mulcot.report.summary import verdict
from mulcot.types import InputError

LABELS = ("positive", "neutral", "negative")


def test_posts_are_joined_by_their_ids(hand_run):
    post = hand_run.prediction
    first = [post(0, "positive", "positive"), post(1, "neutral", "neutral"), post(2, "neutral", "negative"),
             post(3, "positive", "positive"), post(4, "positive", None)]  # fmt: skip
    second = [post(9, "positive", "positive"), post(4, "neutral", None), post(3, "negative", "neutral")]
    second += [post(2, "negative", "negative"), post(1, "positive", "neutral"), post(0, "positive", "positive")]
    found = paired(first, second, LABELS)
    # Counted: p0 (both right), p1 (first alone), p2 (second alone). p3 has two gold labels, p4 none, p9 is in one.
    assert {name: found[name] for name in ("posts", "only_first", "only_second", "other_gold")} == {
        "posts": 3,
        "only_first": 0,
        "only_second": 1,
        "other_gold": 2,
    }
    assert found["differences"]["accuracy"]["difference"] == pytest.approx(0.0)
    assert found["mcnemar"] == {"only_first_right": 1, "only_second_right": 1, "p_value": 1.0}
    # Macro F1: first (1 + 2/3 + 0) / 3, second (2/3 + 0 + 1) / 3.
    assert found["differences"]["macro_f1"]["difference"] == pytest.approx(0.0)


def test_second_minus_first_and_mcnemar_by_hand(hand_run):
    gold = ["positive", "negative"] * 10
    first = [hand_run.prediction(n, "positive", wanted) for n, wanted in enumerate(gold)]
    second = [hand_run.prediction(n, wanted if n < 16 else "positive", wanted) for n, wanted in enumerate(gold)]
    found = paired(first, second, LABELS)
    # 10 of 20 right against 18 of 20; eight posts are the second's alone: p = 2 / 2**8.
    change = found["differences"]["accuracy"]
    assert change["difference"] == pytest.approx(0.4)
    assert 0 < change["low"] < 0.4 < change["high"] < 1
    assert found["mcnemar"] == {"only_first_right": 0, "only_second_right": 8, "p_value": pytest.approx(2 / 2**8)}


def test_no_post_in_common(hand_run):
    found = paired(
        [hand_run.prediction(0, "neutral", "neutral")], [hand_run.prediction(1, "neutral", "neutral")], LABELS
    )
    assert found == {
        "posts": 0,
        "only_first": 1,
        "only_second": 1,
        "other_gold": 0,
        "differences": {},
        "mcnemar": None,
    }


def test_systems_are_compared_with_the_baseline_of_their_seed(hand_run):
    gold = hand_run.gold
    wrong = {"positive": "neutral", "neutral": "negative", "negative": "neutral"}
    for seed, right in ((0, 6), (1, 9)):
        said = [label if n < right else wrong[label] for n, label in enumerate(gold)]
        hand_run.model(f"alone-{seed}", "student, labels alone", seed, said)
    for seed, right in ((0, 8), (1, 8), (2, 8)):
        said = [label if n < right else wrong[label] for n, label in enumerate(gold)]
        hand_run.model(f"student-{seed}", "student, distilled", seed, said)
    (found,) = collect(hand_run.folder)["differences"]
    assert (found["system"], found["baseline"]) == ("student, distilled", "student, labels alone")
    assert [(s["seed"], s["stage"], s["baseline_stage"]) for s in found["seeds"]] == [
        (0, "student-0", "alone-0"),
        (1, "student-1", "alone-1"),
    ]
    assert [s["differences"]["accuracy"]["difference"] for s in found["seeds"]] == pytest.approx([0.2, -0.1])
    assert found["mean"]["accuracy"] == {"mean": pytest.approx(0.05), "sd": pytest.approx(0.3 / 2**0.5), "n": 2}


def test_a_model_without_predictions_is_not_compared(hand_run):
    hand_run.model("alone", "student, labels alone", 0, hand_run.gold)
    (hand_run.model("student", "student, distilled", 0, hand_run.gold) / "predictions.jsonl").unlink()
    assert collect(hand_run.folder)["differences"] == []


def test_a_damaged_prediction_file_is_named(hand_run):
    hand_run.model("alone", "student, labels alone", 0, hand_run.gold)
    path = hand_run.model("student", "student, distilled", 0, hand_run.gold) / "predictions.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"label": "neutral"', '"label": 3', 1), encoding="utf-8")
    with pytest.raises(InputError, match=r"student/predictions\.jsonl, line 5: label: "):
        collect(hand_run.folder)


def test_predictions_that_contradict_the_metrics_are_noted(hand_run):
    def worse(row: Prediction) -> Prediction:
        return hand_run.prediction(0, "negative", "positive") if row.answer.post_id == "p0" else row

    folder = hand_run.model("student", "student, distilled", 0, hand_run.gold, change=worse)
    assert len(read_predictions(folder / "predictions.jsonl")) == 10
    assert collect(hand_run.folder)["notes"] == [
        "student/predictions.jsonl has 9 right answers and its metrics.json 10: one of them is older; test the stage "
        "again"
    ]


@pytest.mark.parametrize(
    ("intervals", "told"),
    [
        ([(-0.1, 0.1), (0.0, 0.2)], "no difference can be told from chance"),
        ([(0.1, 0.3), (0.05, 0.2)], "it is higher beyond chance"),
        ([(-0.3, -0.1)], "it is lower beyond chance"),
        ([(0.1, 0.3), (-0.1, 0.2), (-0.2, -0.1)], "it is higher beyond chance in 1 of 3 seeds and lower in 1"),
    ],
)
def test_the_first_lines_say_what_the_intervals_allow(intervals, told):
    seeds = [{"differences": {"accuracy": {"difference": 0.0, "low": low, "high": high}}} for low, high in intervals]
    mean = {"accuracy": {"mean": -0.25, "sd": None, "n": 1}}
    found = {"system": "student, distilled", "baseline": "student, labels alone", "seeds": seeds, "mean": mean}
    said = verdict({"differences": [found]})
    assert said is not None
    assert said.endswith(f"mean difference in accuracy −0.250; by the 95% bootstrap intervals over posts {told}.")
    assert verdict({"differences": []}) is None
