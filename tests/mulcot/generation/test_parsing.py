from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mulcot.generation.parsing import RationaleRefusedError, held_fields, parse_prediction, parse_rationale
from mulcot.types import DEFAULT_LABELS, RATIONALE_KEYS, Rationale, prediction_json

REAL = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "twitter15" / "val.json"
WANTED = Rationale(
    text_analysis='The word "great" is praise.',
    image_analysis="A crowd smiles.",
    conflict_resolution="None: both agree.",
    final_conclusion="The author is glad, see {both}.",
    prediction="positive",
)
T, I, C, F, P = (getattr(WANTED, name) for name in RATIONALE_KEYS.values())  # noqa: E741 - the five keys' initials


def lines(form: str, joint: str = "\n", **last: str) -> str:
    """The five fields in a form such as `{key}: {value}`."""
    return joint.join(
        last.get(key, form).replace("{key}", key).replace("{value}", getattr(WANTED, name)).replace("{n}", str(n))
        for n, (key, name) in enumerate(RATIONALE_KEYS.items(), start=1)
    )


FORMS = {
    "strict": WANTED.to_json(),
    "indented": json.dumps(json.loads(WANTED.to_json()), indent=2),
    "ascii": json.dumps(json.loads(WANTED.to_json()), ensure_ascii=True),
    "fenced, text around": f"Here it is:\n```json\n{WANTED.to_json()}\n```\nI hope that this helps: ask me {{more}}.",
    "text with braces before": f"In {{this}} form: {WANTED.to_json()}",
    "wrapped": json.dumps({"answer": json.loads(WANTED.to_json())}),
    "other spelling": WANTED.to_json().replace("Text_analysis", "text analysis").replace("Prediction", "PREDICTION"),
    "extra key": WANTED.to_json()[:-1] + ', "confidence": 0.9}',
    "one object a field": "\n".join(
        json.dumps({key: value}) for key, value in json.loads(WANTED.to_json()).items()
    ),
    "thought before": f"<think>{WANTED.to_json().replace('positive', 'negative')}</think>\n{WANTED.to_json()}",
    "trailing comma": WANTED.to_json()[:-1] + ",}",
    "trailing comma, lines": "{\n" + lines('  "{key}": "{value}",') + "\n}",
    "inner quotes on one line": "{" + lines('"{key}": "{value}"', ", ") + "}",
    "inner quotes, fenced": "```json\n{\n" + lines('  "{key}": "{value}"', ",\n") + "\n}\n```\nDone.",
    "cut before the last brace": "{" + lines('"{key}": "{value}"', ",\n"),
    "quoted paragraphs": lines('"{key}": "{value}"', "\n\n"),
    "bare prediction": lines('"{key}": "{value}"', "\n\n", Prediction='"{key}": {value}'),
    "quoted keys alone": lines('"{key}": {value}', "\n\n"),
    "no space": lines('"{key}":"{value}"', "\n"),
    "value below": lines('"{key}":\n"{value}"', "\n\n"),
    "single quotes": "{" + lines("'{key}': '{value}'", ", ") + "}",
    "curly quotes": lines("\u201c{key}\u201d: \u201c{value}\u201d"),
    "lost opening quote": lines('"{key}": {value}"', "\n"),
    "lost closing quote": lines('"{key}": "{value}', "\n"),
    "windows": lines('"{key}": "{value}"', "\r\n\r\n"),
    "plain": lines("{key}: {value}"),
    "full-width colon": lines("{key}\uff1a{value}"),
    "headings": lines("### {key}:\n{value}", "\n\n"),
    "headings without colon": lines("## {key}\n{value}", "\n\n"),
    "headings and rules": lines("### {n}. {key}\n\n{value}", "\n\n---\n\n"),
    "bold": lines("**{key}**: {value}", "\n\n"),
    "bold with colon": lines("**{key}:** {value}", "\n\n"),
    "bold alone": lines("**{key}**\n{value}", "\n\n", Prediction="**{key}:** **{value}**"),
    "numbered": lines("{n}. {key}: {value}"),
    "numbered bold": lines("{n}. **{key}**: {value}"),
    "bullets": lines("- **{key}**: {value}"),
    "quotation": lines("> {key}: {value}"),
    "listed before": "Fields:\n" + "\n".join(f"- {key}" for key in RATIONALE_KEYS) + "\n" + lines("{key}: {value}"),
    "written twice": lines("{key}: {value}") + "\n\n" + lines("{key}: {value}"),
    "other order": "\n".join(reversed(lines("{key}: {value}").split("\n"))),
}  # fmt: skip


@pytest.mark.parametrize("reply", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_rationale(reply: str) -> None:
    assert parse_rationale(reply, DEFAULT_LABELS) == WANTED


@pytest.mark.parametrize("key_form", [str.lower, str.upper, lambda key: key.replace("_", " "), str.title])
def test_keys_are_read_in_any_spelling(key_form: Callable[[str], str]) -> None:
    reply = lines("**{key}**: {value}")
    for key in RATIONALE_KEYS:
        reply = reply.replace(key, key_form(key))
    assert parse_rationale(reply, DEFAULT_LABELS) == WANTED


PIECES = [
    '"', "'", "\\", "\\n", "\n", "\r\n", "\t", "{", "}", "[", ",", ":", "```json", "```", "**", "### ", "1. ", "---",
    '"Prediction": "negative"', "\nPrediction: negative\n", '", "Prediction": "negative"', '{"Text_analysis": "x"}',
    "Image_analysis", "\n### Final_conclusion:\n", "<think>", "</think>", "\u2028", "\x00", "\x1b", "\u200d", "é",
    "\U0001f600", "\ufeff", "\ue000", "\\u0041", "\\ud83d", "a", "negative", " ", "<|im_end|>", WANTED.to_json(),
]  # fmt: skip


def test_what_to_json_writes_is_read_back_exactly() -> None:
    draw = random.Random(5)
    labels = ("positive", "neutral", "negative", "a {b}", '"', "-", "Prediction: x", "**", "Positive")
    for _ in range(1000):
        t, i, c, f = ("".join(draw.choices(PIECES, k=draw.randint(1, 9))).strip() or "x" for _ in range(4))
        rationale = Rationale(t, i, c, f, draw.choice(labels))
        assert parse_rationale(rationale.to_json(), labels) == rationale
        assert parse_rationale(f"```json\n{rationale.to_json()}\n```", labels) == rationale
        assert parse_prediction(prediction_json(rationale.prediction), labels) == rationale.prediction


def test_fields_are_trimmed_and_escapes_undone() -> None:
    strict = parse_rationale(
        json.dumps({**json.loads(WANTED.to_json()), "Text_analysis": ' a\nb "c" \U0001f600 é\\ '}), DEFAULT_LABELS
    )
    assert strict.text_analysis == 'a\nb "c" \U0001f600 é\\'
    tolerant = lines('"{key}": "{value}"', "\n", Text_analysis='"{key}": "  a\\nb \\"c\\" \\ud83d\\ude00 \\u00e9\\\\ "')
    assert parse_rationale(tolerant, DEFAULT_LABELS).text_analysis == strict.text_analysis


def test_raw_line_ends_in_json_strings_are_kept() -> None:
    reply = WANTED.to_json().replace("A crowd", "A\n\ncrowd\t")
    assert parse_rationale(reply, DEFAULT_LABELS).image_analysis == "A\n\ncrowd\t smiles."


def test_halves_of_surrogate_pairs_are_replaced() -> None:
    for reply in (WANTED.to_json().replace("A crowd", "\\ud83d"), lines("{key}: {value}").replace("A crowd", "\ud83d")):
        assert parse_rationale(reply, DEFAULT_LABELS).image_analysis == "\ufffd smiles."


def test_a_key_that_comes_again_belongs_to_the_text_around_it() -> None:
    reply = lines("### {key}\n{value}").replace(C, "- Text_analysis: glad\n- Image_analysis: glad")
    parsed = parse_rationale(reply, DEFAULT_LABELS)
    assert parsed.text_analysis == T
    assert parsed.conflict_resolution == "- Text_analysis: glad\n- Image_analysis: glad"


def test_quotations_that_open_or_close_a_text_are_its_own() -> None:
    for text in ('"Great" is praise.', 'It says "great"', '"Great" and "wow"'):
        assert parse_rationale(lines("{key}: {value}").replace(T, text), DEFAULT_LABELS).text_analysis == text


def without(*keys: str) -> str:
    return json.dumps({key: value for key, value in json.loads(WANTED.to_json()).items() if key not in keys})


def with_values(**values: object) -> str:
    return json.dumps({**json.loads(WANTED.to_json()), **values})


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "none of the fields .*: the reply is empty"),
        ("I cannot see it.\nSorry", r"none of the fields .*: the reply begins 'I cannot see it\.\\nSorry'"),
        ("<think>" + WANTED.to_json(), "none of the fields .*: the reply begins '<think>"),
        ("{}", "none of the fields"),
        (without("Image_analysis"), "^missing field Image_analysis$"),
        (without("Text_analysis", "Prediction"), "^missing fields Text_analysis, Prediction$"),
        (WANTED.to_json()[:150], "^missing fields Final_conclusion, Prediction$"),
        (with_values(Image_analysis=" \n"), "^empty field Image_analysis$"),
        (lines('"{key}": "{value}"', Image_analysis='"{key}": ""'), "^empty field Image_analysis$"),
        (lines("{key}: {value}", Text_analysis="", Image_analysis="{key}:"), "Text_analysis; empty field Image"),
        (with_values(Prediction=""), "^empty field Prediction$"),
        (lines("### {key}\n{value}", Prediction="### {key}\n"), "^empty field Prediction$"),
        (with_values(Prediction="mixed"), "^Prediction 'mixed' is not one of positive, neutral, negative$"),
        (with_values(Prediction="positive/negative"), "Prediction 'positive/negative' is not one of"),
        (with_values(Prediction="positive, or negative"), "is not one of"),
        (with_values(Prediction="not positive"), "is not one of"),
        (with_values(Prediction="positive|neutral|negative"), "is not one of"),
        (with_values(Prediction=None), "^field Prediction is not text$"),
        (with_values(Text_analysis=["a"]), "^field Text_analysis is not text$"),
        (with_values(Text_analysis={"a": "b"}), "^field Text_analysis is not text$"),
        (WANTED.to_json()[:-1] + ', "Prediction": "negative"}', "several different Predictions: positive, negative"),
        (WANTED.to_json()[:-1] + ', "text analysis": "x"}', "Text_analysis is given 2 times, with different texts"),
        (WANTED.to_json() + "\n\nPrediction: neutral", "several different Predictions: positive, neutral"),
        (WANTED.to_json() + with_values(Prediction="neutral"), "several different Predictions: positive, neutral"),
        (lines("{key}: {value}") + "\n**Prediction**: Negative.", "several different Predictions: positive, negative"),
    ],
)  # fmt: skip
def test_refusals_say_exactly_why(reply: str, reason: str) -> None:
    with pytest.raises(RationaleRefusedError, match=reason) as caught:
        parse_rationale(reply, DEFAULT_LABELS)
    assert "\n" not in str(caught.value)


NAMES_NEUTRAL = [
    "neutral", "Neutral", "NEUTRAL.", '"neutral"', "'neutral'", "**neutral**", "`neutral`,", " neutral \n", "- neutral",
    "\u201cneutral\u201d", "*Neutral*.", "neutral (the text is plain)", "neutral. It is plain.", "neutral - plain",
    "neutral\n\n**Note:** the given label negative does not fit.", '"neutral"\nnot "positive"', "neutral \u2014 plain",
    '"neutral", "confidence": 0.9}',
]  # fmt: skip


@pytest.mark.parametrize("written", NAMES_NEUTRAL)
def test_predictions_are_normalised(written: str) -> None:
    assert (
        parse_rationale(lines("{key}: {value}", Prediction=f"Prediction: {written}"), DEFAULT_LABELS).prediction
        == "neutral"
    )
    assert parse_prediction(f'{{"Prediction": {json.dumps(written)}}}', DEFAULT_LABELS) == "neutral"
    assert parse_prediction(f"Prediction: {written}", DEFAULT_LABELS) == "neutral"
    assert parse_prediction(written, DEFAULT_LABELS) == "neutral"


def test_label_sets_of_any_spelling() -> None:
    assert parse_prediction("Very positive.", ["positive", "very_positive"]) == "very_positive"
    assert parse_prediction("very positive. So happy", ["positive", "very positive"]) == "very positive"
    assert parse_prediction('{"Prediction": 4}', ["1", "4"]) == "4"
    assert parse_prediction('{"Prediction": "-"}', ["+", "-"]) == "-"
    assert parse_prediction("a", ["a", "A"]) == "a"
    with pytest.raises(RationaleRefusedError):
        parse_prediction("*a*!A", ["a", "A"])


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "missing field Prediction: the reply is empty"),
        ("I think so", "missing field Prediction: the reply begins 'I think so'"),
        ("positive or negative", "missing field Prediction"),
        ('{"Prediction": "good"}', "Prediction 'good' is not one of"),
        ("Prediction: positive\nPrediction: negative", "several different Predictions: positive, negative"),
        ('{"Prediction": true}', "field Prediction is not text"),
    ],
)
def test_predictions_refused(reply: str, reason: str) -> None:
    with pytest.raises(RationaleRefusedError, match=reason):
        parse_prediction(reply, DEFAULT_LABELS)


def test_a_cut_prediction_is_still_read() -> None:
    assert parse_prediction('{"Prediction": "neutral', DEFAULT_LABELS) == "neutral"
    assert parse_prediction("```json\n" + prediction_json("neutral") + "\n```", DEFAULT_LABELS) == "neutral"


UNITS = [
    "{", "[", '{"a":', '{"Text_analysis":', '{"Text_analysis":[', '{"Text_analysis": "', '{"Text_analysis": "x"}', '"',
    "\\", '\\"', "*", "_", "#", " ", "\n", "\r", "\t", "`", ",", "}", "9", "-", "Prediction", "Prediction:",
    "Prediction: neutral\n", '"Prediction": ', '"Prediction": "', '"Prediction"*', "**Prediction**", "Text_analysis:\n",
    "\nText_analysis: \\", "\n1. ", "\n---\n", "\n```\n", "neutral ", "neutral, ", "- ", "\\ud83d", "\ud83d", "<think>",
    '{"Prediction": 1', "text ", "\u0131", "\u017f",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_long_hostile_replies_take_linear_time(unit: str) -> None:
    body = unit * (20_000 // len(unit))  # the square of which takes seconds
    whole = lines('"{key}": "{value}"', "\n")
    for reply in (body, f'{{"Text_analysis": "{body}', f"{whole}\n{body}"):
        reason = ""
        start = time.process_time()
        try:
            parse_rationale(reply, DEFAULT_LABELS)
        except RationaleRefusedError as refused:
            reason = str(refused)
        assert time.process_time() - start < 1.0
        assert len(reason) < 600


def test_no_reply_raises_anything_else() -> None:
    draw = random.Random(11)
    pieces = [*PIECES, *UNITS, *RATIONALE_KEYS, ": ", '": "', '",\n"', "\n"]
    read = 0
    for _ in range(3000):
        reply = "".join(draw.choices(pieces, k=draw.randint(0, 30)))
        for parse in (parse_rationale, parse_prediction):
            try:
                parsed = parse(reply, DEFAULT_LABELS)
            except RationaleRefusedError:
                continue
            read += 1
            label = parsed if isinstance(parsed, str) else parsed.prediction
            assert label in DEFAULT_LABELS
            if isinstance(parsed, Rationale):
                assert parse_rationale(parsed.to_json(), DEFAULT_LABELS) == parsed
    assert read > 100


@pytest.mark.skipif(not REAL.is_file(), reason="the Twitter-2015 replies of a real teacher are not here")
def test_replies_of_a_real_teacher() -> None:
    rows = json.loads(REAL.read_text(encoding="utf-8"))
    parsed: dict[int, Rationale] = {}
    refused: dict[int, str] = {}
    for row in rows:
        try:
            parsed[row["id"]] = parse_rationale(row["cot"], DEFAULT_LABELS)
        except RationaleRefusedError as reason:
            refused[row["id"]] = str(reason)
    assert len(rows) == 1122
    assert len(parsed) == 1121
    assert refused == {5149: "missing fields Image_analysis, Conflict_resolution"}
    assert parsed[812].prediction == "neutral"
    assert sum(parsed[row["id"]].prediction != row["label"] for row in rows if row["id"] in parsed) == 28
    for row in rows:
        if rationale := parsed.get(row["id"]):
            for key, name in RATIONALE_KEYS.items():
                text = getattr(rationale, name)
                assert text in row["cot"].replace('\\"', '"'), "nothing is written that the teacher did not write"
                assert key not in text
                assert text.count('"') % 2 == 0, "the quotes around a field are not part of it"
                assert name == "prediction" or len(text) > 30


@pytest.mark.parametrize(
    ("reply", "held"),
    [
        ("", ""),
        ("positive", ""),
        ("Text_analysis: it is glad\nPrediction: positive", "Text_analysis Prediction"),
        ("Text_analysis:\nImage_analysis: a dog\nPrediction: mixed", "Image_analysis"),
        ("Prediction: positive\nPrediction: negative", ""),
        ('{"Text_analysis": 3, "Image_analysis": "a dog", "Prediction": ["positive"]}', "Image_analysis"),
        ('{"Text_analysis": "a", "Text_analysis": "b", "Prediction": "positive"}', "Prediction"),
        (WANTED.to_json(), " ".join(RATIONALE_KEYS)),
    ],
)
def test_fields_count_that_a_reply_holds_even_where_it_is_refused(reply: str, held: str) -> None:
    assert held_fields(reply, DEFAULT_LABELS) == set(held.split())


@pytest.mark.skipif(not REAL.is_file(), reason="the Twitter-2015 replies of a real teacher are not here")
def test_fields_of_a_real_reply_that_is_refused() -> None:
    [reply] = [row["cot"] for row in json.loads(REAL.read_text(encoding="utf-8")) if row["id"] == 5149]
    assert held_fields(reply, DEFAULT_LABELS) == {"Text_analysis", "Final_conclusion", "Prediction"}
