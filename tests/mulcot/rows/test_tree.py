import random

import pytest

from mulcot.rows import merge
from mulcot.rows.collator import _packed


def sees(until: tuple[int, ...], node: int) -> list[int]:
    """The nodes that a node may see, by the rule that the layout states."""
    return [other for other in range(len(until)) if other <= node < until[other]]


def test_what_two_sequences_begin_with_is_there_once() -> None:
    tree = merge([(1, 2, 3, 4), (1, 2, 5)])
    assert tree.ids == (1, 2, 3, 4, 5)
    assert tree.depths == (0, 1, 2, 3, 2)
    assert tree.until == (5, 5, 4, 4, 5)
    assert tree.paths == ((0, 1, 2, 3), (0, 1, 4))


@pytest.mark.parametrize("seed", range(200))
def test_every_token_sees_the_tokens_before_it_in_its_own_sequence_and_no_others(seed: int) -> None:
    draw = random.Random(seed)
    sequences = [tuple(draw.randint(0, 1) for _ in range(draw.randint(0, 7))) for _ in range(draw.randint(1, 6))]
    tree = merge(sequences)
    for sequence, path in zip(sequences, tree.paths, strict=True):
        assert tuple(tree.ids[node] for node in path) == sequence
        for length, node in enumerate(path):
            assert tuple(sees(tree.until, node)) == path[: length + 1]
            assert tree.depths[node] == length
    # As few tokens as there are different beginnings.
    assert len(tree.ids) == len({sequence[:end] for sequence in sequences for end in range(1, len(sequence) + 1)})


@pytest.mark.parametrize("count", [1, 2, 9, 30])
@pytest.mark.parametrize("limit", [0, 50, 100, 400])
def test_packing_puts_every_item_on_one_line_within_the_limit(count: int, limit: int) -> None:
    draw = random.Random(count)
    sizes = [draw.randint(20, 120) for _ in range(count)]
    lines = _packed(sizes, limit)
    assert sorted(number for line in lines for number in line) == list(range(count))
    for line in lines:
        assert len(line) == 1 or sum(sizes[number] for number in line) <= limit
    # First fit: no two lines could be one.
    totals = sorted(sum(sizes[number] for number in line) for line in lines)
    assert len(totals) < 2 or totals[0] + totals[1] > limit
