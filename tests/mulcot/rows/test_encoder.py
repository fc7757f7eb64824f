from pathlib import Path

import pytest

from mulcot.images import load_image
from mulcot.models import load_processor
from mulcot.models.tiny import SPECIAL_TOKENS
from mulcot.prompts import get_prompt
from mulcot.rows import RowEncoder
from mulcot.types import DEFAULT_LABELS, Post, prediction_json


@pytest.fixture(scope="module")
def encoder(embedded: Path) -> RowEncoder:
    return RowEncoder(load_processor(str(embedded / "models" / "student")), DEFAULT_LABELS)


@pytest.fixture
def post(embedded: Path) -> Post:
    picture = next((embedded / "posts" / "posts" / "images").glob("*.png"))
    return Post("1", "the harbour is fine", picture, "harbour", "positive")


def test_a_row_reads_as_the_chat_template_renders_it(encoder: RowEncoder, post: Post) -> None:
    row = encoder.row(post, "classification", prediction_json("positive"))
    head = encoder.head(row)
    ids = [*head.per_token["input_ids"].tolist(), *row.tail_ids, *row.response_ids]
    prompt = get_prompt("masc", "classification").render(post, DEFAULT_LABELS).text
    pad = "<|image_pad|>"
    # 56 x 56 pixels are 4 x 4 patches of 14, merged two by two: 4 tokens.
    expected = (
        f"<|im_start|>user\n<|vision_start|>{pad * 4}<|vision_end|>{prompt}<|im_end|>\n"
        '<|im_start|>assistant\n{"Prediction": "positive"}<|im_end|>'
    )
    assert encoder.tokenizer.decode(ids) == expected


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
@pytest.mark.parametrize("where", ["text", "aspect", "response"])
def test_special_tokens_that_a_post_spells_stay_text(encoder: RowEncoder, post: Post, special: str, where: str) -> None:
    spelt = f"buy {special}{special} now"
    given = {"text": post.text, "aspect": post.aspect, "response": "fine"} | {where: spelt}
    attacked = Post("1", str(given["text"]), post.image, given["aspect"], "positive")
    row = encoder.row(attacked, "reasoning", str(given["response"]))
    plain = encoder.row(post, "reasoning", "fine")
    special_ids = set(encoder.tokenizer.all_special_ids) | set(encoder.tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS))

    def controls(ids: tuple[int, ...]) -> list[int]:
        return [token for token in ids if token in special_ids]

    assert controls(row.tail_ids) == controls(plain.tail_ids)
    assert controls(row.response_ids) == list(encoder.end_of_turn)
    assert spelt in encoder.tokenizer.decode([*row.tail_ids, *row.response_ids])


def test_both_tasks_share_their_prefix_up_to_the_reply_format(encoder: RowEncoder, post: Post) -> None:
    reasoning, classification = encoder.row(post, "reasoning"), encoder.row(post, "classification")
    assert reasoning.head == classification.head
    shared = 0
    while reasoning.tail_ids[shared] == classification.tail_ids[shared]:
        shared += 1
    text = encoder.tokenizer.decode(reasoning.tail_ids[:shared])
    assert "positive, neutral, negative" in text


def test_the_end_of_turn_is_the_chat_template_s(encoder: RowEncoder) -> None:
    assert encoder.tokenizer.convert_ids_to_tokens(list(encoder.end_of_turn)) == ["<|im_end|>"]


def test_decode_stops_at_the_end_of_turn_and_undoes_plain_ids(encoder: RowEncoder) -> None:
    text = 'Größe 🎉 "quoted"\nnew line'
    ids = encoder.plain_ids(text)
    assert encoder.decode([*ids, *encoder.end_of_turn, *ids]) == text
    assert encoder.decode([*ids, encoder.pad_id, encoder.pad_id]) == text


def test_the_head_holds_the_picture_of_the_post(encoder: RowEncoder, post: Post) -> None:
    head = encoder.head(encoder.row(post, "reasoning"))
    pixels = encoder.processor.image_processor(images=[load_image(post.image)], return_tensors="pt")
    assert head.vision["pixel_values"].equal(pixels["pixel_values"])
    assert head.vision["image_grid_thw"].tolist() == [[1, 4, 4]]
