"""What a perturbation changed, against figures worked out by hand."""

import math

import pytest

from mulcot.metrics.faithfulness import aspect_swaps, changes, conflict, total_variation
from mulcot.types import Answer, Rationale

P = {"positive": 0.7, "neutral": 0.2, "negative": 0.1}
Q = {"positive": 0.1, "neutral": 0.3, "negative": 0.6}


def answer(post_id: str, probabilities: dict[str, float], rationale: Rationale | None = None) -> Answer:
    return Answer(post_id, max(probabilities, key=probabilities.__getitem__), probabilities, rationale, "", "")


def rationale(text: str, prediction: str = "positive") -> Rationale:
    return Rationale(text, "a b c d", "x", "same words", prediction)


def test_total_variation_is_half_of_all_differences() -> None:
    assert total_variation(P, Q) == pytest.approx((0.6 + 0.1 + 0.5) / 2)
    assert total_variation(P, P) == 0
    assert total_variation({"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}) == 1
    # Between two Bernoulli distributions it is |p - q|; by Pinsker it is at most the root of KL / 2.
    for p, q in [(0.1, 0.9), (0.5, 0.6), (0.3, 0.31)]:
        distance = total_variation({"a": p, "b": 1 - p}, {"a": q, "b": 1 - q})
        assert distance == pytest.approx(abs(p - q))
        kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        assert distance <= math.sqrt(kl / 2)


def test_answers() -> None:
    before = [answer("1", P), answer("2", P), answer("3", Q)]
    after = [answer("1", Q), answer("2", P), answer("3", Q)]
    found = changes(before, after, ["positive", None, "negative"], written=False)
    assert found.model_dump() == {
        "posts": 3,
        "golds": 2,
        "accuracy": 0.5,
        "accuracy_before": 1.0,
        "labels_changed": pytest.approx(1 / 3),
        "total_variation": pytest.approx(0.6 / 3),
        "probability_change": pytest.approx(-0.6 / 3),
        "rationales": None,
    }


def test_rationales_are_compared_field_by_field_where_there_are_two() -> None:
    before = [answer("1", P, rationale("a b c d")), answer("2", P, rationale("kept")), answer("3", P, rationale("x y"))]
    after = [
        answer("1", P, Rationale("a b", "a b c d", "天气", "other thing", "negative")),
        answer("2", P, None),
        answer("3", P, rationale("x y")),
    ]
    found = changes(before, after, [None] * 3, written=True).rationales
    assert found is not None
    assert (found.parse_rate, found.parse_rate_before, found.pairs) == (pytest.approx(2 / 3), 1.0, 2)
    assert found.predictions_changed == 0.5
    # ROUGE-L of "a b" and "a b c d": recall 2/4, precision 2/2, F1 2/3; of the first pair, 0 of the other, equal one.
    assert found.distance["Text_analysis"] == pytest.approx((1 / 3 + 0) / 2)
    assert found.distance["Image_analysis"] == 0
    assert found.distance["Conflict_resolution"] == pytest.approx((1 + 0) / 2)
    assert found.distance["Final_conclusion"] == pytest.approx((1 + 0) / 2)
    # Whole: 11 words and 8, of which "a b a b c d" in common: 2 · (6/11) · (6/8) / (6/11 + 6/8).
    assert found.distance["whole"] == pytest.approx((1 - 2 * 6 / 19) / 2)


def test_equal_texts_in_another_script_are_not_apart() -> None:
    same = Rationale("天气", "图片", "没有", "所以", "positive")
    found = changes([answer("1", P, same)], [answer("1", P, same)], [None], written=True).rationales
    assert found is not None
    assert set(found.distance.values()) == {0.0}


def test_nothing_and_answers_that_do_not_belong_together() -> None:
    none = changes([], [], [], written=True)
    assert (none.posts, none.accuracy, none.total_variation, none.rationales) == (0, None, None, None)
    with pytest.raises(ValueError, match="different posts"):
        changes([answer("1", P)], [answer("2", P)], [None], written=False)


def test_a_conflict_is_where_text_and_picture_alone_get_other_answers() -> None:
    text_only = [answer("1", P), answer("2", P), answer("3", Q), answer("4", P)]
    image_only = [answer("1", P), answer("2", Q), answer("3", Q), answer("4", Q)]
    whole = [answer("1", P), answer("2", P), answer("3", P), answer("4", Q)]
    found = conflict(text_only, image_only, whole, ["positive", "positive", "negative", None])
    assert found.model_dump() == {
        "yes": {"posts": 2, "golds": 1, "accuracy": 1.0},
        "no": {"posts": 2, "golds": 2, "accuracy": 0.5},
    }


def test_whether_answers_follow_the_aspect() -> None:
    answers = [answer("1", P), answer("2", Q), answer("3", P), answer("4", P)]
    found = aspect_swaps(
        answers, ["negative", "negative", "positive", "neutral"], ["positive", "positive", "positive", None]
    )
    assert found is not None
    assert found.model_dump() == {
        "posts": 3,
        "follows": pytest.approx(2 / 3),
        "differing": 2,
        "differing_follows": 0.5,
        "differing_stays": 0.5,
    }
    assert aspect_swaps(answers, ["neutral"] * 4, [None] * 4) is None
