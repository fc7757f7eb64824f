import json
from pathlib import Path

import pytest

from mulcot.models import load_processor
from mulcot.rows import SECTIONS, RowEncoder, token_sections
from mulcot.rows.sections import _grown
from mulcot.types import DEFAULT_LABELS, Rationale, prediction_json

END = 0


class ReadableTokenizer:
    """Ids are places in a list of pieces, so that a test reads as it is written; a piece may be half a character."""

    def __init__(self, *pieces: str | bytes) -> None:
        self.pieces = [piece.encode() if isinstance(piece, str) else piece for piece in ("<end>", *pieces)]

    def ids(self) -> list[int]:
        return [*range(1, len(self.pieces)), END]

    def decode(self, ids: list[int], **_: object) -> str:
        return b"".join(self.pieces[each] for each in ids).decode(errors="replace")


def named(tokenizer: ReadableTokenizer) -> list[str]:
    return [SECTIONS[section] for section in token_sections(tokenizer, tokenizer.ids(), [END])]


def test_every_token_is_in_the_field_that_it_writes() -> None:
    pieces = {
        '{"': "format",
        "Text_": "format",
        "analysis": "format",
        '": "': "format",
        "Good": "Text_analysis",
        " news": "Text_analysis",
        '."': "Text_analysis",  # it writes the full stop
        ', "Image_analysis': "format",
        '": "A': "Image_analysis",  # it writes the first letter
        " dog": "Image_analysis",
        '", "': "format",
        "Conflict_resolution": "format",
        '":': "format",
        ' "none': "Conflict_resolution",
        '", "Final_conclusion": "': "format",
        "So": "Final_conclusion",
        '", "Prediction": "': "format",
        "positive": "Prediction",
        '"}': "format",
    }
    assert named(ReadableTokenizer(*pieces)) == [*pieces.values(), "format"]


def test_a_character_that_tokens_share_belongs_to_each_of_them() -> None:
    smile = "😀".encode()
    tokenizer = ReadableTokenizer('{"Prediction": "', smile[:1], smile[1:3], smile[3:], 'é"}')
    assert named(tokenizer) == ["format", "Prediction", "Prediction", "Prediction", "Prediction", "format"]


def test_a_field_that_quotes_a_key_stays_one_field() -> None:
    tokenizer = ReadableTokenizer('{"Text_analysis": "', 'it says \\"Prediction\\": \\"', "x", '\\"', '"}')
    assert named(tokenizer) == ["format", *["Text_analysis"] * 3, "format", "format"]


def test_what_is_not_json_is_format_and_a_response_that_was_cut_off_has_no_end() -> None:
    assert named(ReadableTokenizer("just", " words")) == ["format"] * 3
    tokenizer = ReadableTokenizer('{"Prediction": "', "posi", '"}')
    assert [SECTIONS[section] for section in token_sections(tokenizer, [1, 2, 3], [END])] == [
        "format",
        "Prediction",
        "format",
    ]
    assert token_sections(tokenizer, [], [END]) == []


@pytest.fixture(scope="module")
def encoder(embedded: Path) -> RowEncoder:
    return RowEncoder(load_processor(str(embedded / "models" / "student")), DEFAULT_LABELS)


@pytest.mark.parametrize(
    "text",
    [
        Rationale(
            "Good 😀 news\nof «café»", 'A "dog" \\ runs', "日本 none", "So: {it} is, [good]", "positive"
        ).to_json(),
        prediction_json("negative"),
        "no JSON, but <|im_end|> and 🏳️‍🌈",
    ],
)
def test_the_tokenizers_own_offsets_and_growing_texts_tell_the_same(encoder: RowEncoder, text: str) -> None:
    response = encoder.response_ids(text)
    told = [SECTIONS[section] for section in token_sections(encoder.tokenizer, response, encoder.end_of_turn)]

    class Slow:  # the same tokenizer, of which no offsets can be had
        decode = encoder.tokenizer.decode

    assert told == [SECTIONS[section] for section in token_sections(Slow(), response, encoder.end_of_turn)]
    assert told[-1] == "format"
    # Put together, the tokens of a field hold its text.
    for section in set(told) - {"format"}:
        ids = [token for token, name in zip(response, told, strict=True) if name == section]
        assert json.dumps(json.loads(text)[section], ensure_ascii=False)[1:-1] in encoder.tokenizer.decode(ids)
    assert len(list(_grown(encoder.tokenizer, list(response)))) == len(response)
