"""What is said of two tokenizers that differ, and of heads that do not fit them."""

from types import SimpleNamespace
from typing import Any

import pytest

from mulcot.models import check_head_rows, entry_rows, shared_rows, vocabulary_difference
from mulcot.models.tiny import train_tokenizer
from mulcot.rows import vocabulary_digest
from mulcot.types import InputError


def tokenizer(entries: dict[str, int], **roles: str | None) -> Any:
    return SimpleNamespace(get_vocab=lambda: entries, **roles)


BIRDS = {"owl": 0, "jay": 1, "tit": 2, "<s>": 3}


@pytest.mark.parametrize(
    ("mine", "theirs", "text"),
    [
        (BIRDS, dict(reversed(BIRDS.items())), ""),
        (BIRDS, BIRDS | {"elk": 4}, "4 entries against 5: 1 is the assistant's alone ('elk')"),
        (BIRDS | {"elk": 4}, BIRDS, "5 entries against 4: 1 is the student's alone ('elk')"),
        (
            BIRDS,
            BIRDS | {"jay": 2, "tit": 1},
            "4 entries against 4: 2 have another id ('jay' is 1 against 2, 'tit' is 2 against 1)",
        ),
        (
            BIRDS,
            {"a": 3, "b": 2, "c": 1, "d": 0},
            "4 entries against 4: 4 are the student's alone ('owl', 'jay', 'tit', ...), "
            "4 are the assistant's alone ('d', 'c', 'b', ...)",
        ),
    ],
)
def test_difference_by_hand(mine: dict[str, int], theirs: dict[str, int], text: str) -> None:
    assert vocabulary_difference(tokenizer(mine), tokenizer(theirs)) == text


def test_roles_are_told_but_are_no_difference_by_themselves() -> None:
    mine = tokenizer(BIRDS, eos_token="<s>", pad_token="owl")
    assert vocabulary_difference(mine, tokenizer(BIRDS, eos_token="jay", pad_token="owl")) == ""
    said = vocabulary_difference(mine, tokenizer(BIRDS | {"elk": 4}, eos_token="jay", pad_token="owl"))
    assert said.endswith("alone ('elk'), eos_token is '<s>' against 'jay'")


def test_it_says_something_exactly_when_the_digests_differ() -> None:
    texts = ["Hail on the lane, says the owl."] * 3
    one, same, larger = (train_tokenizer(texts, size) for size in (270, 270, 280))
    assert vocabulary_digest(one) == vocabulary_digest(same)
    assert vocabulary_difference(one, same) == ""
    assert vocabulary_digest(one) != vocabulary_digest(larger)
    said = vocabulary_difference(one, larger)
    assert said.startswith("270 entries against 280: 10 are the assistant's alone (")
    assert "\n" not in said


def test_heads_of_one_family_are_cut_to_the_shorter_one() -> None:
    qwen = tokenizer({str(index): index for index in range(151_665)})
    assert shared_rows(151_936, 152_064, qwen) == shared_rows(152_064, 151_936, qwen) == 151_936
    assert shared_rows(151_665, 151_665, qwen) == 151_665


def test_entries_may_leave_ids_out() -> None:
    assert entry_rows(tokenizer({"owl": 0, "jay": 9})) == 10
    check_head_rows(10, tokenizer({"owl": 0, "jay": 9}), "student")
    with pytest.raises(InputError, match="has 9 rows and its tokenizer needs 10, so that it cannot write 'jay'"):
        check_head_rows(9, tokenizer({"owl": 0, "jay": 9}), "student")


@pytest.mark.parametrize(("rows", "owner"), [((2, 4), "student"), ((4, 2), "assistant")])
def test_a_head_that_was_cut_is_refused(rows: tuple[int, int], owner: str) -> None:
    with pytest.raises(
        InputError, match=f"the head of the {owner} has 2 rows and its tokenizer needs 4, .* 'tit', '<s>':"
    ):
        shared_rows(*rows, tokenizer(BIRDS))
