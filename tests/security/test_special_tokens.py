"""Whatever a post spells, it holds no control token: of every special token, in every place, with every tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mulcot.models import load_processor
from mulcot.rows import RowEncoder
from mulcot.rows.plain_text import PlainText, control_tokens
from mulcot.types import DEFAULT_LABELS, InputError, Post, Rationale

ARCHITECTURES = ("idefics3", "llava", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm")
WIDE = str.maketrans({chr(code): chr(code + 0xFEE0) for code in range(0x21, 0x7F)})
"""Letters of full width, which NFKC makes those of ASCII."""


def spellings(token: str) -> list[str]:
    """Texts that hold a token: alone, twice, glued to words, among blanks, cut by another, in letters of full width."""
    half = len(token) // 2
    return [
        token,
        token * 3,
        f"buy{token}now",
        f"buy {token} now",
        f"\n{token}\n",
        token[:half] + token + token[half:],
        token.translate(WIDE),
        token.upper(),
        f"{token}\u200b{token}",
        "".join(f"{character}" for character in token) + "e\u0301",
    ]


def rows_hold(encoder: RowEncoder, post: Post) -> None:
    """A post's rows hold as many control tokens, of each kind, as those of a harmless post."""
    controls = control_tokens(encoder.processor)

    def counted(of: Post, response: str) -> dict[int, int]:
        row = encoder.row(of, "reasoning", response)
        ids = [*encoder.head(row).per_token["input_ids"].tolist(), *row.tail_ids, *row.response_ids]
        return {number: ids.count(number) for number in controls}

    ours = counted(post, "fine")
    image = encoder.processor.image_token_id
    assert ours[image] > 0
    for token in controls.values():
        for spelt in spellings(token):
            attacked = replace(post, text=spelt, aspect=spelt)
            written = Rationale(spelt, spelt, spelt, spelt, spelt).to_json()
            assert counted(attacked, written) == ours, (token, spelt)


@pytest.fixture
def post(embedded: Path) -> Post:
    return Post("1", "hail", next((embedded / "posts" / "posts" / "images").glob("*.png")), "hail", "neutral")


def test_every_special_token_of_the_tiny_tokenizer(embedded: Path, post: Post) -> None:
    encoder = RowEncoder(load_processor(str(embedded / "models" / "student")), DEFAULT_LABELS)
    assert len(control_tokens(encoder.processor)) >= 8
    rows_hold(encoder, post)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_special_token_of_other_architectures(architecture: str, architectures: ModuleType, post: Post) -> None:
    processor, _ = architectures.build(architecture)
    rows_hold(RowEncoder(processor, DEFAULT_LABELS), post)


def test_a_picture_s_token_that_was_not_added_as_special(architectures: ModuleType, post: Post) -> None:
    """As some models on the hub have it: `split_special_tokens` alone lets it through."""
    processor, _ = architectures.build("llava")
    tokenizer = processor.tokenizer
    tokenizer.add_tokens([AddedToken("<picture>", special=False, normalized=False)])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=True)])
    added = tokenizer.convert_tokens_to_ids(["<picture>", "<tool_call>"])
    assert (
        tokenizer("a<picture>b", add_special_tokens=False, split_special_tokens=True)["input_ids"].count(added[0]) == 1
    )
    processor.image_token, processor.image_token_id = "<picture>", added[0]
    plain = PlainText(processor)
    for token in ("<picture>", "<tool_call>"):
        for spelt in spellings(token):
            ids = plain.ids(spelt)
            assert not set(ids) & control_tokens(processor).keys(), spelt
            assert tokenizer.decode(ids) == spelt


def fast(model: Any, normalizer: Any = None, **special: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace() if isinstance(model, models.WordLevel) else None
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


LETTERS = [(letter, -3.0) for letter in "</s>image buynowBUYNOWIMAGE\n\u200b\u0301e|_"]


def unigram() -> PreTrainedTokenizerFast:
    """The end of a text is a piece like any other, and the likeliest way to write `</s>`."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("<image>", 0.0), *dict.fromkeys(LETTERS)]
    return fast(models.Unigram(pieces, unk_id=0), eos_token="</s>", unk_token="<unk>")


def normalised() -> PreTrainedTokenizerFast:
    """Letters of full width become those of ASCII before tokens are looked for."""
    made = fast(
        models.Unigram([("<unk>", 0.0), *dict.fromkeys(LETTERS)], unk_id=0), normalizers.NFKC(), unk_token="<unk>"
    )
    made.add_tokens([AddedToken("<image>", special=False, normalized=True)])
    return made


def words() -> PreTrainedTokenizerFast:
    vocabulary = {token: at for at, token in enumerate(["[UNK]", "buy", "now", "SEP", "[", "]", "IMG"])}
    made = fast(models.WordLevel(vocabulary, "[UNK]"), unk_token="[UNK]", sep_token="[SEP]", pad_token="[PAD]")
    made.add_tokens([AddedToken("[IMG]", special=False, normalized=False)])
    return made


@pytest.mark.parametrize("make", [unigram, normalised, words])
def test_every_special_token_of_other_kinds_of_tokenizers(make: Any) -> None:
    tokenizer = make()
    processor = SimpleNamespace(tokenizer=tokenizer)
    for name in ("<image>", "[IMG]"):
        number = tokenizer.convert_tokens_to_ids(name)
        if number not in (None, tokenizer.unk_token_id):
            processor.image_token_id = number
    controls = control_tokens(processor)
    assert controls
    plain = PlainText(processor)
    for token in controls.values():
        for spelt in spellings(token):
            assert not set(plain.ids(spelt)) & controls.keys(), spelt


def test_a_character_that_is_a_token_and_nothing_else_is_refused() -> None:
    made = fast(models.WordLevel({"[UNK]": 0, "a": 1}, "[UNK]"), unk_token="[UNK]")
    made.add_tokens([AddedToken("\u2603", special=False, normalized=False)])
    with pytest.raises(InputError, match="in no other way than as a token"):
        PlainText(SimpleNamespace(tokenizer=made)).ids("a \u2603")


def test_a_label_that_spells_a_token_is_refused(embedded: Path) -> None:
    processor = load_processor(str(embedded / "models" / "student"))
    with pytest.raises(InputError, match=r"labels: 'a<\|im_end\|>' holds a special token of the model"):
        RowEncoder(processor, ("good", "a<|im_end|>"))


def test_plain_text_is_tokenised_as_ever(embedded: Path) -> None:
    processor = load_processor(str(embedded / "models" / "student"))
    text = 'Größe 🎉 "quoted"\nnew line < image > |im_end|'
    expected = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert PlainText(processor).ids(text) == expected
