"""`mulcot eval` on files of every kind, against counts by hand; and what is said of wrong ones."""

import json
from pathlib import Path

import pytest
import sacrebleu

from mulcot.cli import main
from mulcot.metrics.resources import UnavailableError, load_encoder, load_wordnet
from mulcot.predictions import Prediction, write_predictions
from mulcot.types import Answer, Rationale, RationaleRecord

HAPPY = Rationale("the text is glad", "the dog smiles", "no conflict here", "both are glad", "positive")
GLOOMY = Rationale("the text is sad", "the dog smiles", "the text counts more", "it is sad", "negative")
GOLD = {"1": "positive", "2": "negative", "3": "neutral", "4": "positive"}


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def score(tmp_path: Path, said: Path, known: Path, *more: str) -> dict:
    out = tmp_path / "scores.json"
    given = ["eval", "--predictions", str(said), "--references", str(known), "--json", str(out), *more]
    assert main(given) == 0
    return json.loads(out.read_text(encoding="utf-8"))


def error(capsys, said: Path, known: Path, *more: str, code: int = 1) -> str:
    assert main(["eval", "--predictions", str(said), "--references", str(known), *more]) == code
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.fixture
def gold(tmp_path) -> Path:
    return lines(tmp_path / "gold.jsonl", *({"id": post, "label": label} for post, label in GOLD.items()))


@pytest.fixture
def stage(tmp_path) -> Path:
    """What a stage wrote: post 2 is wrong, the reply to 3 is cut, 4 was labelled without a rationale's agreement."""
    rows = [
        Prediction(answer("1", "positive", HAPPY), "positive", "a glad text", "dog", "1.png", {"conflict": "no"}),
        Prediction(answer("2", "positive", HAPPY), "negative", "a sad text", "dog", "2.png", {"conflict": "yes"}),
        Prediction(answer("3", "neutral", None, "Text_analysis: plain"), "neutral", "plain", "sky", "3.png"),
        Prediction(answer("4", "positive", GLOOMY), "positive", "plain", "sea", "3.png"),
    ]
    write_predictions(tmp_path / "predictions.jsonl", rows)
    return tmp_path / "predictions.jsonl"


@pytest.fixture
def rationales(tmp_path) -> Path:
    records = [
        RationaleRecord("1", HAPPY, "teacher-predicted", "model", "hash"),
        RationaleRecord("2", GLOOMY, "teacher-explained", "model", "hash"),
        RationaleRecord("4", HAPPY, "teacher-predicted", "model", "hash"),
    ]
    return lines(tmp_path / "rationales.jsonl", *(json.loads(record.to_json()) for record in records))


def answer(post: str, label: str, rationale: Rationale | None, reply: str = "") -> Answer:
    rest = [name for name in ("positive", "neutral", "negative") if name != label]
    sure = {label: 0.8, rest[0]: 0.15, rest[1]: 0.05}
    written = reply if rationale is None else rationale.to_json()
    return Answer(post, label, sure, rationale, written, "" if rationale else "fields are missing")


def test_a_stages_predictions_against_rationales(tmp_path, stage, rationales, capsys):
    found = score(tmp_path, stage, rationales, "--skip", "meteor", "sim")
    assert (found["predictions"]["kind"], found["references"]["kind"]) == ("stage predictions", "rationale file")
    assert (found["posts"], found["missing"]["count"], found["surplus"]["count"]) == (4, 0, 0)
    assert found["classification"]["accuracy"] == 3 / 4
    assert found["classification"]["ece"] == pytest.approx(0.05)
    assert found["disagreements"] == {"count": 1, "posts": ["2"]}
    reasoning = found["reasoning"]
    assert (reasoning["posts"], reasoning["references"], reasoning["parse_rate"]) == (4, 3, 3 / 4)
    assert (reasoning["agreement_with_gold"], reasoning["agreement_with_answer"]) == (1 / 4, 2 / 4)
    texts = [" ".join(json.loads(r.to_json()).values()) for r in (HAPPY, HAPPY, GLOOMY, HAPPY, GLOOMY, HAPPY)]
    assert reasoning["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts[:3], [texts[3:]]).score / 100)
    assert reasoning["by_source"]["teacher-explained"]["posts"] == 1
    assert reasoning["unavailable"] == {"meteor": "left out by --skip", "sim": "left out by --skip"}
    assert found["refused"] == {"count": 1, "posts": ["3"], "reasons": ["fields are missing"]}
    posts = {kind: {name: one["posts"] for name, one in groups.items()} for kind, groups in found["slices"].items()}
    assert posts == {
        "aspects of the post": {"1": 2, "2": 2},
        "words of the text": {"up to 10": 4},
        "reference rationale": {"none": 1, "teacher-explained": 1, "teacher-predicted": 2},
        "conflict": {"no": 1, "yes": 1},
    }
    shown = capsys.readouterr().out
    assert "1 of 4 labels disagree with the gold label: 2" in shown
    assert "METEOR is not computed: left out by --skip" in shown
    assert "by conflict" in shown
    assert "3: fields are missing" in shown


def test_a_stages_predictions_against_gold_labels(tmp_path, stage, gold):
    found = score(tmp_path, stage, gold)
    assert found["classification"]["accuracy"] == 3 / 4
    assert (found["reasoning"]["bleu"], found["reasoning"]["references"]) == (None, 0)
    assert "gold.jsonl holds no reference rationale" in found["reasoning"]["unavailable"]["sim"]
    assert found["reasoning"]["parse_rate"] == 3 / 4


def test_meteor_and_sim_are_computed_where_they_are_installed(tmp_path, stage, rationales):
    try:
        load_wordnet()
        load_encoder()
    except UnavailableError as missing:
        pytest.skip(str(missing))
    found = score(tmp_path, stage, rationales)["reasoning"]
    assert found["unavailable"] == {}
    assert 0.3 < found["meteor"] < 1.0
    assert 0.3 < found["sim"] < 1.0
    assert found["by_source"]["teacher-explained"]["sim"] < found["by_source"]["teacher-predicted"]["sim"]


def test_what_is_not_installed_is_said_and_never_another_number(tmp_path, stage, rationales, monkeypatch, capsys):
    monkeypatch.setattr("mulcot.metrics.resources.find_spec", lambda name: None)
    found = score(tmp_path, stage, rationales)["reasoning"]
    assert (found["meteor"], found["sim"]) == (None, None)
    assert all("pip install 'mulcot[metrics]'" in reason for reason in found["unavailable"].values())
    assert "Sim is not computed: Sim is left out: sentence-transformers is not installed" in capsys.readouterr().out


def test_the_order_is_free_and_missing_posts_count_as_wrong(tmp_path, gold, capsys):
    said = lines(tmp_path / "said.jsonl", {"id": 4, "label": "positive"}, {"id": 1, "label": "positive"},
                 {"id": 9, "label": "neutral"}, {"id": 2, "label": None})  # fmt: skip
    found = score(tmp_path, said, gold)
    assert found["missing"] == {"count": 1, "posts": ["3"]}
    assert found["surplus"] == {"count": 1, "posts": ["9"]}
    assert found["classification"]["accuracy"] == 2 / 4
    assert (found["classification"]["posts"], found["classification"]["unparsed"]) == (4, 2)
    assert found["disagreements"]["posts"] == ["2", "3"]
    assert found["reasoning"] is None
    shown = capsys.readouterr().out
    assert "1 of 4 posts of" in shown
    assert "have no prediction and count as wrong: 3" in shown
    assert "are not in" in shown


def test_text_of_the_files_can_neither_act_on_the_terminal_nor_be_markup(tmp_path, capsys):
    odd = "[red]x[/red]\x1b[2J\u202e"
    known = lines(tmp_path / "gold.jsonl", {"id": "1", "label": "positive"}, {"id": odd, "label": odd})
    said = lines(tmp_path / "said.jsonl", {"id": "1", "label": "positive"}, {"id": odd, "label": "positive"})
    found = score(tmp_path, said, known, "--labels", "positive", odd)
    assert found["disagreements"]["posts"] == [odd]
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert shown.count("[red]x[/red][U+001B][2J[U+202E]") >= 3  # the post, the label's row, its column


def test_missing_replies_are_empty_ones(tmp_path, rationales):
    said = lines(tmp_path / "replies.jsonl", {"id": "1", "reply": HAPPY.to_json(), "gold": "positive"})
    found = score(tmp_path, said, rationales, "--skip", "meteor", "sim")
    assert found["reasoning"]["empty_predictions"] == 2
    assert found["reasoning"]["rouge_l"] == pytest.approx(1 / 3)
    assert found["reasoning"]["parse_rate"] == pytest.approx(1 / 3)
    assert "no gold label is known of 2 of 3 posts: 2, 4" in found["notes"]


def test_replies_are_judged_by_their_prediction_or_by_their_own_label(tmp_path, gold):
    replies = [
        {"id": "1", "reply": HAPPY.to_json(), "label": "negative"},
        {"id": "2", "reply": "negative"},
        {"id": "3", "reply": "I do not know."},
        {"id": "4", "reply": ""},
    ]
    found = score(tmp_path, lines(tmp_path / "replies.jsonl", *replies), gold)
    assert found["disagreements"]["posts"] == ["1", "3", "4"]
    assert found["classification"]["unparsed"] == 2
    assert found["reasoning"]["agreement_with_answer"] == 0.0  # post 1 alone has an answer beside its reply
    assert found["reasoning"]["agreement_with_gold"] == 1 / 4


def test_rationale_files_are_predictions_too(tmp_path, rationales, gold):
    found = score(tmp_path, rationales, gold)
    assert found["classification"]["accuracy"] == 3 / 4  # post 3 has no rationale
    assert found["reasoning"]["agreement_with_answer"] is None
    assert found["slices"] is None


def test_recorded_rationales_of_a_real_teacher(tmp_path, shared_data, capsys):
    val = shared_data / "twitter15" / "val.json"
    found = score(tmp_path, val, val, "--skip", "meteor", "sim")
    assert (found["disagreements"]["count"], found["posts"]) == (28, 1122)
    assert found["classification"]["accuracy"] == pytest.approx(1 - 28 / 1122)
    assert found["classification"]["unparsed"] == 0
    # One reply lacks two fields, but not its Prediction: it is no rationale, and its label counts all the same.
    assert found["refused"] == {
        "count": 1,
        "posts": ["5149"],
        "reasons": ["missing fields Image_analysis, Conflict_resolution"],
    }
    assert found["reasoning"]["parse_rate"] == 1121 / 1122
    assert found["reasoning"]["parse_rate_per_field"] == {
        "Text_analysis": 1.0,
        "Image_analysis": 1121 / 1122,
        "Conflict_resolution": 1121 / 1122,
        "Final_conclusion": 1.0,
        "Prediction": 1.0,
    }
    assert found["reasoning"]["agreement_with_gold"] == (1121 - 28) / 1122
    assert found["reasoning"]["by_source"]["recorded"]["posts"] == 1121
    assert "28 of 1,122 labels disagree with the gold label" in capsys.readouterr().out


def test_one_class_alone_is_scored_and_said(tmp_path):
    known = lines(tmp_path / "gold.jsonl", {"id": 1, "gold": "neutral"}, {"id": 2, "gold": "neutral"})
    said = lines(tmp_path / "said.jsonl", {"id": 1, "label": "neutral"}, {"id": 2, "label": "neutral"})
    found = score(tmp_path, said, known)
    assert (found["classification"]["accuracy"], found["classification"]["macro_f1"]) == (1.0, 1.0)
    assert found["notes"] == ["every gold label is 'neutral': F1 says no more than the accuracy"]


def test_a_list_and_lines_are_the_same(tmp_path, gold):
    listed = tmp_path / "said.json"
    listed.write_text(json.dumps([{"post_id": post, "label": label} for post, label in GOLD.items()]), encoding="utf-8")
    assert score(tmp_path, listed, gold)["classification"]["accuracy"] == 1.0


def test_another_label_set_is_named(tmp_path, capsys):
    known = lines(tmp_path / "gold.jsonl", {"id": 1, "label": 5}, {"id": 2, "label": 1})
    said = lines(tmp_path / "said.jsonl", {"id": 1, "label": "5"}, {"id": 2, "label": "5"})
    assert "'5' is no label of the set; write one of positive, neutral, negative, or give --labels" in error(
        capsys, said, known
    )
    found = score(tmp_path, said, known, "--labels", "1", "5")
    assert (found["labels"], found["classification"]["accuracy"]) == (["1", "5"], 1 / 2)


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        ([], "said.jsonl: it holds no rows"),
        ([{"id": 1, "label": "neutral"}, {"id": 1, "label": "neutral"}], "line 2, field 'id': post '1' stands at"),
        ([{"id": 1, "label": "mixed"}], "line 1, field 'label': 'mixed' is no label of the set"),
        ([{"id": 1, "label": "neutral"}, {"id": 2}], "line 2, field 'label': it is missing"),
        ([{"label": "neutral"}], "line 1, field 'id': it is missing; name the post"),
        ([{"id": 1, "text": "hi"}], "line 1, field 'label': there is none (keys here: 'id', 'text')"),
        ([{"id": 1, "cot": 3}], "line 1, field 'cot': it is 3; give the reply as a text"),
        (["text"], "line 1: 'text' is no JSON object"),
        ([{"id": 8, "label": "neutral"}], "none of its posts (8) is in"),
        ([{"post_id": "1", "rationale": {}, "source": "teacher-predicted"}], "line 1, field 'model': it is missing"),
        ([{"post_id": "1", "probabilities": {}, "reply": ""}], "line 1: gold: Field required"),
        ([{"id": 1, "reply": "positive", "gold": "neutral"}], "the gold label of post '1' is 'neutral' here and"),
    ],
)
def test_wrong_predictions_are_named_by_file_row_and_field(tmp_path, gold, capsys, rows, where):
    message = error(capsys, lines(tmp_path / "said.jsonl", *rows), gold)
    assert where in message
    assert "said.jsonl" in message


def test_wrong_references_are_named(tmp_path, gold, capsys):
    wrong = lines(tmp_path / "wrong.jsonl", {"id": 1, "gold": "positive"}, {"id": 2, "gold": "great"})
    assert "wrong.jsonl, line 2, field 'gold': 'great' is no label" in error(capsys, gold, wrong)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": 1, "gold": "positive"}\n{"id": 2,\n', encoding="utf-8")
    assert "broken.jsonl, line 2: no valid JSON" in error(capsys, gold, broken)
    assert "there is no such file" in error(capsys, gold, tmp_path / "nowhere.jsonl", code=2)
    assert "index.noun: there is no such file" in error(
        capsys, *two_replies(tmp_path), "--skip", "sim", "--wordnet", str(tmp_path)
    )


def two_replies(tmp_path: Path) -> tuple[Path, Path]:
    rows = [{"id": 1, "cot": HAPPY.to_json(), "label": "positive"}]
    return lines(tmp_path / "a.jsonl", *rows), lines(tmp_path / "b.jsonl", *rows)


def test_probabilities_without_the_label_are_named(tmp_path, stage, gold, capsys):
    values = json.loads(stage.read_text(encoding="utf-8").splitlines()[0])
    lines(stage, values | {"probabilities": {"neutral": 0.5, "negative": 0.5}})
    assert "'positive' is no label of the set" in error(capsys, stage, gold)
    message = error(capsys, stage, gold, "--labels", "positive", "neutral", "negative")
    assert "line 1, field 'probabilities': they name no 'positive'; give one for every label" in message
