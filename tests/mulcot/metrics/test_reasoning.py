"""What counts as a rationale, as agreement and as text to compare, against values by hand and sacrebleu."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sacrebleu

from mulcot.generation import RationaleRefusedError, parse_rationale
from mulcot.metrics import ReasoningReport
from mulcot.metrics.functional import distinct, meteor, rouge_l
from mulcot.metrics.resources import UnavailableError, load_wordnet
from mulcot.metrics.stage_files import Reasoning
from mulcot.types import RATIONALE_KEYS, Answer, InputError, Rationale, RationaleRecord

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
    unsmoothed = {"smooth_method": "none", "use_effective_order": False}
    each = [sacrebleu.sentence_bleu(p, [r], **unsmoothed).score / 100 for p, r in zip(said, right, strict=True)]
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
    others = ("mean_words", "mean_reference_words", "meteor", "sim", "distinct_1", "distinct_2")
    assert {report[name] for name in (*scores, *others)} == {None}
    assert set(report["parse_rate_per_field"].values()) == {None}
    assert set(report["by_source"]["teacher-explained"].values()) == {None, 0}
    assert Reasoning.model_validate_json(json.dumps(report)).by_source.keys() == {
        "teacher-predicted",
        "teacher-explained",
    }
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


def test_scores_are_split_by_the_source_of_the_reference():
    report = computed(ROWS)
    for source, places in (("teacher-predicted", (0, 2)), ("teacher-explained", (1,))):
        alone = computed([ROWS[place] for place in places])
        names = ("bleu", "sentence_bleu", "rouge_l", "meteor", "sim", "agreement_with_gold")
        assert report["by_source"][source] == {**{name: alone[name] for name in names}, "posts": len(places)}
    assert report["by_source"]["teacher-predicted"]["agreement_with_gold"] == 1 / 2
    assert report["by_source"]["teacher-explained"]["agreement_with_gold"] == 0.0
    assert computed(ROWS[:1])["by_source"]["teacher-explained"]["posts"] == 0
    other = computed([(ROWS[0][0], record("1", HAPPY, "assistant"), None)])["by_source"]
    assert (other["assistant"]["posts"], other["assistant"]["agreement_with_gold"]) == (1, None)


def test_fields_are_counted_in_refused_replies_too():
    cut = answer("6", "positive", None, "Text_analysis: the text is glad\nImage_analysis:")
    alone = answer("7", "positive", None, "Prediction: positive\nFinal_conclusion: both are glad")
    report = computed([ROWS[0], (cut, None, None), (alone, None, None), ROWS[4]])
    assert report["parse_rate"] == 1 / 4
    assert report["parse_rate_per_field"] == {
        "Text_analysis": 2 / 4,
        "Image_analysis": 1 / 4,
        "Conflict_resolution": 1 / 4,
        "Final_conclusion": 2 / 4,
        "Prediction": 2 / 4,
    }
    assert list(report["parse_rate_per_field"]) == list(RATIONALE_KEYS)


def test_distinct_is_of_the_replies_and_not_of_the_references():
    report = computed(ROWS)
    said = [HAPPY_TEXT, HAPPY_TEXT, "I am a small model.", GLOOMY_TEXT, ""]
    words = [word for text in said for word in text.replace("model.", "model .").split()]
    assert report["distinct_1"] == pytest.approx(len(set(words)) / len(words))
    assert report["distinct_2"] == pytest.approx(distinct(said, 2))
    repeated = computed([ROWS[0]] * 5)
    assert repeated["distinct_1"] == pytest.approx(report_of_one()["distinct_1"] / 5)


def report_of_one() -> dict:
    return computed(ROWS[:1])


def test_meteor_and_sim_say_why_they_are_missing():
    report = computed(ROWS)
    assert (report["meteor"], report["sim"]) == (None, None)
    assert report["unavailable"].keys() == {"meteor", "sim"}
    assert "mulcot eval" in report["unavailable"]["sim"]
    told = ReasoningReport(LABELS, unavailable={"sim": "no encoder"})
    told.update(*zip(*ROWS, strict=True))
    assert told.compute()["unavailable"]["sim"] == "no encoder"
    assert Reasoning.model_validate_json(json.dumps(report)).unavailable == report["unavailable"]


def test_meteor_and_sim_are_means_over_posts_with_a_reference():
    try:
        wordnet = load_wordnet()
    except UnavailableError as missing:
        pytest.skip(str(missing))
    report = ReasoningReport(LABELS, wordnet, lambda texts: np.array([[len(t) < 70, len(t) >= 70] for t in texts]))
    report.update(*zip(*ROWS, strict=True))
    found = report.compute()
    said, right = [HAPPY_TEXT, HAPPY_TEXT, "I am a small model."], [HAPPY_TEXT, GLOOMY_TEXT, HAPPY_TEXT]
    assert found["meteor"] == pytest.approx(sum(meteor(said, right, wordnet)) / 3)
    assert found["sim"] == pytest.approx(2 / 3)  # the short reply alone lies in another direction
    assert found["unavailable"] == {}
    assert found["by_source"]["teacher-predicted"]["sim"] == pytest.approx(1 / 2)
    assert found["by_source"]["teacher-explained"]["rouge_l"] == pytest.approx(rouge_l(said[1:2], right[1:2])[0])


def test_older_files_are_still_read():
    old = {"bleu": 0.2, "sentence_bleu": 0.3, "rouge_l": 0.4, "parse_rate": 1.0, "posts": 3}
    old |= {"agreement_with_gold": 0.5, "agreement_with_answer": None}
    read = Reasoning.model_validate_json(json.dumps(old))
    assert (read.bleu, read.meteor, read.by_source, read.unavailable) == (0.2, None, {}, {})
