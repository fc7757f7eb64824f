"""Classification scores against confusion matrices and F1 worked out by hand, and against scores from counts alone."""

import json
import random
import subprocess
import sys
from collections import Counter

import pytest
from sklearn.metrics import precision_recall_fscore_support

from mulcot.metrics import ClassificationReport
from mulcot.metrics.functional import classification_scores, majority_scores
from mulcot.metrics.stage_files import Classification
from mulcot.types import InputError

LABELS = ("positive", "neutral", "negative")
GOLD = ["positive"] * 4 + ["neutral"] * 5 + ["negative"]
SAID = [
    "positive",
    "positive",
    "neutral",
    "negative",
    "neutral",
    "neutral",
    "neutral",
    "positive",
    "neutral",
    "neutral",
]
# By hand. positive: tp 2, fp 1, fn 2 -> F1 4/7. neutral: tp 4, fp 2, fn 1 -> 8/11. negative: tp 0 -> 0.
F1 = {"positive": 4 / 7, "neutral": 8 / 11, "negative": 0.0}


def computed(said: list[str], gold: list[str], labels: tuple[str, ...] = LABELS) -> dict:
    report = ClassificationReport(labels)
    report.update(said, gold)
    return report.compute()


def f1_by_counting(said: list[str], gold: list[str]) -> dict[str, float]:
    """F1 by label, over the labels that occur."""
    right, golds, saids = Counter(g for s, g in zip(said, gold, strict=True) if s == g), Counter(gold), Counter(said)
    return {label: 2 * right[label] / (golds[label] + saids[label]) for label in {*gold, *said}}


def test_a_report_by_hand():
    report = computed(SAID, GOLD)
    assert report["posts"] == 10
    assert report["accuracy"] == 0.6
    assert report["macro_f1"] == pytest.approx(sum(F1.values()) / 3, abs=1e-6)
    assert report["weighted_f1"] == pytest.approx(0.4 * F1["positive"] + 0.5 * F1["neutral"], abs=1e-6)
    assert report["confusion"] == {
        "positive": {"positive": 2, "neutral": 1, "negative": 1},
        "neutral": {"positive": 1, "neutral": 4, "negative": 0},
        "negative": {"positive": 0, "neutral": 1, "negative": 0},
    }
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize("seed", range(5))
def test_a_report_against_counting(seed):
    rng = random.Random(seed)
    labels = tuple("abcdef"[: rng.randint(2, 6)])
    gold, said = rng.choices(labels, k=40), rng.choices(labels, k=40)
    report, f1, golds = computed(said, gold, labels), f1_by_counting(said, gold), Counter(gold)
    assert report["accuracy"] == sum(s == g for s, g in zip(said, gold, strict=True)) / 40
    assert report["macro_f1"] == pytest.approx(sum(f1.values()) / len(f1), abs=1e-6)
    assert report["weighted_f1"] == pytest.approx(sum(golds[label] * f1[label] for label in golds) / 40, abs=1e-6)
    assert sum(sum(row.values()) for row in report["confusion"].values()) == 40


def test_batches_add_up():
    report = ClassificationReport(LABELS)
    for start in range(0, 10, 3):
        report.update(SAID[start : start + 3], GOLD[start : start + 3])
    assert report.compute() == computed(SAID, GOLD)


def test_all_right_is_one_and_all_wrong_is_zero():
    right, wrong = computed(GOLD, GOLD), computed(["negative"] * 9 + ["neutral"], GOLD)
    assert [right[name] for name in ("accuracy", "weighted_f1", "macro_f1")] == [1.0, 1.0, 1.0]
    assert [wrong[name] for name in ("accuracy", "weighted_f1", "macro_f1")] == [0.0, 0.0, 0.0]


def test_a_label_that_never_occurs_is_no_part_of_macro_f1():
    report = computed(["positive", "neutral", "neutral"], ["positive", "neutral", "positive"])
    assert report["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2, abs=1e-6)


def test_no_posts_have_no_scores():
    report = ClassificationReport(LABELS).compute()
    assert (report["accuracy"], report["weighted_f1"], report["macro_f1"], report["posts"]) == (None, None, None, 0)
    assert report["confusion"]["neutral"] == {"positive": 0, "neutral": 0, "negative": 0}
    assert (report["ece"], report["calibration"], report["intervals"], report["unparsed"]) == (None, [], {}, 0)
    assert Classification.model_validate_json(json.dumps(report)).per_class.keys() == set(LABELS)


def test_an_unknown_label_is_named_and_nothing_is_added():
    report = ClassificationReport(LABELS)
    with pytest.raises(InputError, match=r"gold label 1 is 'mixed'; it must be one of positive, neutral, negative"):
        report.update(["positive", "neutral"], ["positive", "mixed"])
    with pytest.raises(InputError, match="prediction 0 is ''"):
        report.update([""], ["positive"])
    with pytest.raises(ValueError, match="2 predictions for 1 targets"):
        report.update(["positive", "neutral"], ["positive"])
    assert report.compute()["posts"] == 0


@pytest.mark.parametrize("labels", [(), ("positive",), ("positive", "positive")])
def test_a_label_set_that_is_none_is_refused(labels):
    with pytest.raises(InputError, match="two or more different ones"):
        ClassificationReport(labels)


def test_scores_over_nothing_are_refused():
    with pytest.raises(ValueError, match="0 predictions for 0 targets"):
        classification_scores([], [], 3)
    with pytest.raises(ValueError, match="no posts"):
        majority_scores({"positive": 0}, "positive")


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("gold", [GOLD, ["neutral"] * 3, ["positive", "neutral"]])
def test_a_majority_class_scores_what_answering_it_everywhere_scores(label, gold):
    always = computed([label] * len(gold), gold)
    assert majority_scores(Counter(gold), label) == {
        name: pytest.approx(always[name], abs=1e-6) for name in ("accuracy", "weighted_f1", "macro_f1")
    }


def test_a_majority_class_by_hand():
    # neutral: precision 1/2, recall 1 -> F1 2/3; the two others 0.
    scores = majority_scores({"positive": 4, "neutral": 5, "negative": 1}, "neutral")
    assert scores == pytest.approx({"accuracy": 0.5, "weighted_f1": 1 / 3, "macro_f1": 2 / 9})


def test_importing_the_metrics_loads_nothing_slow():
    loaded = "import sys, mulcot.metrics.functional, mulcot.report, mulcot.evaluation; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    slow = {
        "torch",
        "torchmetrics",
        "sacrebleu",
        "rouge_score",
        "nltk",
        "evaluate",
        "datasets",
        "transformers",
        "scipy",
    }
    assert "mulcot.metrics.reasoning" in modules
    assert not slow & set(modules)


def by_class_of_scikit_learn(said: list[str | None], gold: list[str], labels: tuple[str, ...]) -> dict[str, dict]:
    written = ["" if label is None else label for label in said]
    table = precision_recall_fscore_support(gold, written, labels=list(labels), zero_division=0.0)
    return {
        label: {"precision": p, "recall": r, "f1": f, "posts": n, "predicted": written.count(label)}
        for label, p, r, f, n in zip(labels, *(column.tolist() for column in table), strict=True)
    }


def unmeasured_is_zero(scores: dict) -> dict:
    return {name: 0.0 if value is None else value for name, value in scores.items()}


@pytest.mark.parametrize("seed", range(5))
def test_scores_by_label_are_scikit_learns_also_with_missing_predictions(seed):
    rng = random.Random(seed)
    gold, said = rng.choices(LABELS, (5, 3, 1), k=60), rng.choices((*LABELS, None), k=60)
    report = computed(said, gold)
    expected = by_class_of_scikit_learn(said, gold, LABELS)
    for label in LABELS:
        assert unmeasured_is_zero(report["per_class"][label]) == pytest.approx(expected[label], abs=1e-6)
    assert report["macro_f1"] == pytest.approx(sum(scores["f1"] for scores in expected.values()) / 3, abs=1e-6)
    weighted = sum(scores["f1"] * scores["posts"] for scores in expected.values()) / 60
    assert report["weighted_f1"] == pytest.approx(weighted, abs=1e-6)
    assert report["unparsed"] == said.count(None) > 0
    assert report["posts"] == 60 == sum(sum(row.values()) for row in report["confusion"].values()) + report["unparsed"]
    assert Classification.model_validate_json(json.dumps(report)).unparsed == report["unparsed"]


def test_a_missing_prediction_is_wrong_and_kept_out_of_the_matrix():
    report = computed(["positive", None, "neutral", None], ["positive", "positive", "neutral", "negative"])
    assert report["accuracy"] == 0.5
    assert report["per_class"]["positive"] == pytest.approx(
        {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "posts": 2, "predicted": 1}, abs=1e-6
    )
    assert report["per_class"]["negative"] == {
        "precision": None, "recall": 0.0, "f1": 0.0, "posts": 1, "predicted": 0
    }  # fmt: skip
    assert report["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3, abs=1e-6)
    assert report["weighted_f1"] == pytest.approx((2 * 2 / 3 + 1 + 0) / 4, abs=1e-6)
    assert report["confusion"]["negative"] == {"positive": 0, "neutral": 0, "negative": 0}
    assert report["unparsed"] == 2


def test_no_prediction_at_all_scores_nothing():
    report = computed([None, None], ["positive", "neutral"])
    assert (report["accuracy"], report["macro_f1"], report["weighted_f1"], report["unparsed"]) == (0.0, 0.0, 0.0, 2)
    assert report["intervals"] == {name: [0.0, 0.0] for name in ("accuracy", "weighted_f1", "macro_f1")}


def test_one_class_alone_is_scored_on_itself():
    report = computed(["neutral"] * 3, ["neutral"] * 3)
    assert (report["accuracy"], report["macro_f1"], report["weighted_f1"]) == (1.0, 1.0, 1.0)
    assert report["per_class"]["positive"] == {
        "precision": None, "recall": None, "f1": None, "posts": 0, "predicted": 0
    }  # fmt: skip


def test_calibration_comes_with_probabilities_and_leaves_out_posts_without():
    report = ClassificationReport(LABELS)
    report.update(["positive", "neutral"], ["positive", "positive"])
    assert (report.compute()["ece"], report.compute()["calibration"]) == (None, [])
    sure = {"positive": 0.9, "neutral": 0.05, "negative": 0.05}
    report.update(["positive", "positive", None], ["positive", "neutral", "neutral"], [sure, sure, sure])
    found = report.compute()
    assert found["ece"] == pytest.approx(0.4)  # two posts at 0.9, one of them right
    assert found["calibration"] == [
        {"lower": 13 / 15, "upper": 14 / 15, "confidence": pytest.approx(0.9), "accuracy": 0.5, "posts": 2}
    ]
    assert found["posts"] == 5
    with pytest.raises(InputError, match="prediction 0: the probability of 'negative' is None; it must be between 0"):
        report.update(["negative"], ["negative"], [{"positive": 1.0}])
    assert report.compute()["posts"] == 5
