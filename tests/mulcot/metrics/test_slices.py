"""Scores of groups of posts against groups and scores counted by hand."""

import json

import pytest
from sklearn.metrics import f1_score

from mulcot.metrics.functional import bootstrap_intervals
from mulcot.metrics.slices import ASPECT, ASPECTS, REFERENCE, WORDS, slice_scores
from mulcot.predictions import Prediction
from mulcot.types import Answer, Rationale, RationaleRecord

LABELS = ("positive", "neutral", "negative")


def prediction(post: int | str, label: str, gold: str | None, text: str = "a text", **rest: object) -> Prediction:
    values = {"aspect": None, "image": f"{text}.png", "slices": {}} | rest
    return Prediction(Answer(str(post), label, {label: 1.0}, None, "", "no reply"), gold, text, **values)


def record(post: str, source: str) -> RationaleRecord:
    return RationaleRecord(post, Rationale("a", "b", "c", "d", "neutral"), source, "model", "hash")


def posts_of(scores: dict) -> dict:
    return {kind: {group: found["posts"] for group, found in groups.items()} for kind, groups in scores.items()}


def test_groups_by_hand():
    rows = [
        prediction("1", "positive", "positive", "one two three", aspect="Ann"),
        prediction("2", "negative", "positive", "one two three", aspect="Bob"),
        prediction("3", "neutral", None, "one two three", aspect="Cid"),
        prediction("4", "neutral", "neutral", "one two three", aspect="Ann", image="another.png"),
        prediction("5", "neutral", "neutral", " ".join("w" * 11), aspect="Ann"),
        prediction("6", "neutral", "negative", " ".join("w" * 10), slices={"conflict": "yes"}),
        prediction("7", "positive", "positive", " ".join("w" * 21), slices={"conflict": "no", "script": "latin"}),
    ]
    references = {"1": record("1", "teacher-predicted"), "2": record("2", "teacher-explained")}
    scores = slice_scores(rows, references, LABELS)
    assert posts_of(scores) == {
        ASPECTS: {"1": 2, "3 or more": 2},  # post 3 has no gold label, but is an aspect of the text of 1 and 2
        WORDS: {"up to 10": 4, "11 to 15": 1, "more than 20": 1},
        REFERENCE: {"none": 4, "teacher-explained": 1, "teacher-predicted": 1},
        "conflict": {"no": 1, "yes": 1},
        "script": {"latin": 1},
    }
    assert list(scores[WORDS]) == ["up to 10", "11 to 15", "more than 20"]
    assert scores[ASPECTS]["3 or more"]["accuracy"] == 1 / 2
    assert scores["conflict"]["yes"]["accuracy"] == 0.0
    assert scores[WORDS]["up to 10"]["accuracy"] == 2 / 4
    assert json.loads(json.dumps(scores)) == scores


def test_scores_of_a_group_are_those_of_its_posts_alone():
    said = ["positive", "negative", "neutral", "neutral", "positive", "negative", "neutral"]
    gold = ["positive", "positive", "neutral", "negative", "positive", "negative", "neutral"]
    rows = [prediction(n, s, g) for n, (s, g) in enumerate(zip(said, gold, strict=True))]
    found = slice_scores(rows, {}, LABELS)[REFERENCE]["none"]
    assert found["accuracy"] == pytest.approx(5 / 7)
    assert found["macro_f1"] == pytest.approx(f1_score(gold, said, average="macro", labels=list(LABELS)))
    numbers = [[LABELS.index(label) for label in labels] for labels in (said, gold)]
    expected = bootstrap_intervals(*numbers, 3)
    assert found["intervals"] == {name: list(expected[name]) for name in ("accuracy", "macro_f1")}


def test_frequent_aspects_alone_are_groups():
    counts = {f"aspect {n:02}": 4 + n for n in range(23)}
    rows = [
        prediction(f"{name}-{n}", "neutral", "neutral", f"{name} {n}", aspect=name.upper() if n else name)
        for name, count in counts.items()
        for n in range(count)
    ]
    found = slice_scores(rows, {}, LABELS)[ASPECT]
    assert len(found) == 20  # that of 4 posts is too rare, two of the others are past the 20th
    assert list(found)[:2] == ["aspect 22", "aspect 21"]
    assert [one["posts"] for one in found.values()] == list(range(26, 6, -1))
    assert ASPECT not in slice_scores(rows[:4], {}, LABELS)


def test_posts_without_a_gold_label_are_in_no_group():
    assert slice_scores([prediction(1, "neutral", None)], {}, LABELS) == {}
    assert slice_scores([], {}, LABELS) == {}
