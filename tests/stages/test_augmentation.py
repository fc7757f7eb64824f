from pathlib import Path

from mulcot.types import DEFAULT_LABELS, Post, Rationale
from stages.augmentation import Sample, select

POSTS = {
    "1": Post("1", "fine", Path("a.png"), "cafe", "positive"),
    "2": Post("2", "dull", Path("b.png"), None, "negative"),
}


def rationale(text: str, label: str) -> Rationale:
    return Rationale(text, "a picture", "none", "so it is", label)


def test_only_right_and_new_rationales_are_kept_and_every_other_is_counted() -> None:
    known = rationale("known", "positive")
    samples = [
        Sample("1", 0, known.to_json()),  # the teacher's own
        Sample("1", 1, rationale("fresh", "positive").to_json()),
        Sample("1", 2, rationale("fresh", "positive").to_json()),  # an earlier sample's
        Sample("1", 3, rationale("other", "negative").to_json()),  # wrong
        Sample("2", 0, "no rationale at all"),
        Sample("2", 1, rationale("known", "negative").to_json()),  # the same words of another post are new here
    ]
    outcome = select(samples, POSTS, {"1": [known]}, DEFAULT_LABELS, "assistant", {"masc": "a" * 16, "msc": "b" * 16})
    assert [(record.post_id, record.attempts) for record in outcome.kept] == [("1", 2), ("2", 2)]
    assert [record.prompt_hash[0] for record in outcome.kept] == ["a", "b"]
    assert {record.source for record in outcome.kept} == {"assistant"}
    assert outcome.counts() == {"not new": 2, "wrong label": 1, "not a rationale": 1}
    assert [(sample.post_id, sample.index) for sample, _ in outcome.refused] == [("1", 0), ("1", 2), ("1", 3), ("2", 0)]
