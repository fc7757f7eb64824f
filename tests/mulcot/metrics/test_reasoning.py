"""What counts as a rationale, as agreement and as text to compare, against values by hand and sacrebleu."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import sacrebleu

from mulcot.generation import RationaleRefusedError, parse_rationale
from mulcot.metrics import ReasoningReport
from mulcot.types import Answer, InputError, Rationale, RationaleRecord

LABELS = ("positive", "neutral", "negative")
VAL = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "twitter15" / "val.json"
HAPPY = Rationale("the text is glad", "the dog smiles", "no conflict here", "both are glad", "positive")
GLOOMY = Rationale("the text is sad", "the dog smiles", "the text counts more", "it is sad", "negative")
HAPPY_TEXT = "the text is glad the dog smiles no conflict here both are glad positive"
GLOOMY_TEXT = "the text is sad the dog smiles the text counts more it is sad negative"


def answer(post: str, label: str, rationale: Rationale | None, reply: str = "") -> Answer:
    written = reply if rationale is None else rationale.to_json()
    return Answer(post, label, {label: 1.0}, rationale, written, "" if rationale else "no field was found")


def record(post: str, rationale: Rationale, source: str = "teacher-predicted") -> RationaleRecord:
    return RationaleRecord(post, rationale, source, "teacher-model", "hash")


def computed(rows: list[tuple[Answer, RationaleRecord | None, str | None]]) -> dict:
    report = ReasoningReport(LABELS)
    answers, references, golds = zip(*rows, strict=True)
    report.update(answers, references, golds)
    return report.compute()


ROWS = [
    (answer("1", "positive", HAPPY), record("1", HAPPY), "positive"),
    (answer("2", "negative", HAPPY), record("2", GLOOMY, "teacher-explained"), "negative"),
    (answer("3", "positive", None, "I am a small model."), record("3", HAPPY), "positive"),
    (answer("4", "negative", GLOOMY), None, "positive"),
    (answer("5", "neutral", None, ""), None, None),
]


def test_agreement_and_counts_by_hand():
    report = computed(ROWS)
    assert report["posts"] == 5
    assert report["parse_rate"] == 3 / 5
    assert (report["golds"], report["agreement_with_gold"]) == (4, 1 / 4)  # post 1; 2 and 4 are wrong, 3 says nothing
    assert report["agreement_with_answer"] == 2 / 5  # posts 1 and 4
    assert report["references"] == 3
    assert (report["references_predicted"], report["references_explained"]) == (2, 1)
    assert (report["empty_predictions"], report["empty_references"]) == (0, 0)
    assert report["mean_words"] == pytest.approx((14 + 14 + 5 + 15 + 0) / 5)
    assert report["mean_reference_words"] == pytest.approx((14 + 15 + 14) / 3)
    assert json.loads(json.dumps(report)) == report


def test_text_is_compared_without_json_and_a_refused_reply_as_it_was_written():
    said = [HAPPY_TEXT, HAPPY_TEXT, "I am a small model."]
    right = [HAPPY_TEXT, GLOOMY_TEXT, HAPPY_TEXT]
    report = computed(ROWS)
    assert report["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [right]).score / 100)
    each = [sacrebleu.sentence_bleu(p, [r]).score / 100 for p, r in zip(said, right, strict=True)]
    assert report["sentence_bleu"] == pytest.approx(sum(each) / 3)
    # Post 2: "the text is the dog smiles" is common, 6 words of 14 and of 15. Post 3 shares no word.
    assert report["rouge_l"] == pytest.approx((1 + 2 * 6 / (14 + 15) + 0) / 3)


def test_posts_without_a_reference_do_not_touch_the_text_scores():
    names = ("bleu", "sentence_bleu", "rouge_l", "references", "mean_reference_words")
    with_all, with_references = computed(ROWS), computed(ROWS[:3])
    assert {name: with_all[name] for name in names} == {name: with_references[name] for name in names}


def test_a_refused_reply_costs_the_text_scores():
    right = [(answer(str(n), "positive", HAPPY), record(str(n), HAPPY), "positive") for n in range(4)]
    refused = (answer("4", "positive", None, ""), record("4", HAPPY), "positive")
    assert computed(right)["rouge_l"] == 1.0
    worse = computed([*right, refused])
    assert worse["rouge_l"] == pytest.approx(0.8)
    assert worse["sentence_bleu"] == pytest.approx(0.8)
    assert worse["bleu"] == pytest.approx(math.exp(1 - 5 / 4))
    assert (worse["parse_rate"], worse["agreement_with_gold"], worse["empty_predictions"]) == (0.8, 0.8, 1)


def test_empty_references_and_replies_are_counted(caplog):
    empty = Rationale("", "", "", "", "")
    report = computed([(answer("1", "neutral", None, " \n"), record("1", empty), "neutral")])
    assert (report["empty_predictions"], report["empty_references"]) == (1, 1)
    assert (report["bleu"], report["sentence_bleu"], report["rouge_l"]) == (0.0, 0.0, 0.0)
    assert not caplog.records


def test_nothing_measured_is_none():
    report = ReasoningReport(LABELS).compute()
    scores = ("bleu", "sentence_bleu", "rouge_l", "parse_rate", "agreement_with_gold", "agreement_with_answer")
    assert {report[name] for name in (*scores, "mean_words", "mean_reference_words")} == {None}
    assert {report[name] for name in ("posts", "golds", "references", "empty_predictions")} == {0}


def test_batches_add_up():
    report = ReasoningReport(LABELS)
    for row in ROWS:
        report.update([row[0]], [row[1]], [row[2]])
    assert report.compute() == computed(ROWS)


def test_what_does_not_belong_together_is_refused_whole():
    report = ReasoningReport(LABELS)
    first, reference, gold = ROWS[0]
    with pytest.raises(ValueError, match="the answer is to post 1, its reference to post 9"):
        report.update([first], [replace(reference, post_id="9")], [gold])
    with pytest.raises(InputError, match="post 4: the gold label is 'mixed'; it must be one of positive"):
        report.update([first, ROWS[3][0]], [reference, None], [gold, "mixed"])
    with pytest.raises(ValueError, match="shorter"):
        report.update([first], [reference], [])
    assert report.compute()["posts"] == 0


def test_real_rationales_against_the_next_posts():
    if not VAL.exists():
        pytest.skip("the Twitter-2015 sample is not beside this checkout")
    rows = json.loads(VAL.read_text(encoding="utf-8"))
    parsed: list[tuple[str, str, Rationale]] = []
    for row in rows[:40]:
        try:
            parsed.append((str(row["id"]), row["label"], parse_rationale(row["cot"], LABELS)))
        except RationaleRefusedError:
            continue
    assert len(parsed) >= 35
    following = parsed[1:] + parsed[:1]
    pairs = list(zip(parsed, following, strict=True))
    report = computed([(answer(i, g, own), record(i, other), g) for (i, g, own), (_, _, other) in pairs])
    assert report["parse_rate"] == 1.0
    assert report["agreement_with_gold"] == sum(own.prediction == gold for _, gold, own in parsed) / len(parsed)
    assert report["agreement_with_answer"] == report["agreement_with_gold"]
    said, right = ([" ".join(json.loads(r.to_json()).values()) for _, _, r in side] for side in (parsed, following))
    assert report["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [right]).score / 100)
    assert report["mean_words"] == pytest.approx(sum(len(text.split()) for text in said) / len(said))
    assert 0.02 < report["bleu"] < report["rouge_l"] < 0.6
