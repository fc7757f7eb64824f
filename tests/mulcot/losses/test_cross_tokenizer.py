"""Pairs of tokens of different tokenizers, against their bytes and by hand; the laws of the loss on them."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mulcot.losses import Aligned, Dense, Projected, common_boundaries, join_pairs, pair_responses, uld
from mulcot.models.tiny import train_tokenizer
from mulcot.types import InputError

TEXTS = (
    '{"Text_analysis": "The text calls Juniper Cafe splendid.", "Prediction": "negative"}',
    "The café is 🔥🔥 great, naïve 日本語テキスト and don't  2024!\n\n",
    "👩‍👩‍👧 Über die Straße, привет мир 😀 ☃ <|im_end|> <|image_pad|>[SEP]",
    "a",
    "",
    "   ",
    " leading and trailing ",
)


@pytest.fixture(scope="module")
def small() -> Any:
    return train_tokenizer(TEXTS * 5, 290)


@pytest.fixture(scope="module")
def large() -> Any:
    return train_tokenizer(TEXTS * 5, 420)


@pytest.fixture(scope="module")
def word_piece() -> PreTrainedTokenizerFast:
    """Lower case, no accents, and no blank in any token or offset."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    entries = ["[UNK]", "[SEP]", *"<>|[]_", *letters, *(f"##{x}" for x in letters), "the", "cafe"]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[SEP]")


@pytest.fixture(scope="module")
def byte_fallback() -> PreTrainedTokenizerFast:
    """As Gemma's: blanks are written ▁, and characters without an entry as their bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        TEXTS * 5,
        trainers.BpeTrainer(vocab_size=400, limit_alphabet=50, special_tokens=special, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def bytes_of(tokenizer: Any, text: str) -> list[bytes]:
    """The bytes that each token of a text stands for, of a byte-level tokenizer or one with byte fallback."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    if any(token.startswith("<0x") for token in tokenizer.get_vocab()):
        return [
            bytes([int(token[3:5], 16)]) if token.startswith("<0x") else token.replace("▁", " ").encode()
            for token in tokens
        ]
    return [bytes(_byte(character) for character in token) for token in tokens]


def _byte(character: str) -> int:
    """The byte that a character of a byte-level token stands for (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return ord(character) if ord(character) < 256 else others[ord(character) - 256]


def by_bytes(student: Sequence[bytes], assistant: Sequence[bytes], text: str) -> list[int]:
    """The pairs as they follow from the bytes: the same have been read, and they are whole characters."""
    whole = set(accumulate((len(character.encode()) for character in text), initial=0))
    starts = {at: index for index, at in enumerate(accumulate(map(len, assistant[:-1]), initial=0))}
    return [starts.get(at, -1) if at in whole else -1 for at in accumulate(map(len, student[:-1]), initial=0)]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("names", [("small", "large"), ("large", "small"), ("small", "byte_fallback"), ("large",) * 2])
def test_pairs_equal_those_of_the_bytes(names: tuple[str, str], text: str, request: pytest.FixtureRequest) -> None:
    student, assistant = (request.getfixturevalue(name) for name in names)
    mine, theirs = bytes_of(student, text), bytes_of(assistant, text)
    assert b"".join(mine) == b"".join(theirs) == text.encode()
    golden = by_bytes(mine, theirs, text) if text else []
    pairs = pair_responses(student, assistant, text, (7,), (8,))
    assert pairs.dtype == torch.int64
    assert pairs.tolist() == [*golden, len(theirs)]
    if text == TEXTS[0]:
        assert (pairs >= 0).sum() > 10


def test_pairs_with_a_tokenizer_that_drops_blanks_and_accents(large: Any, word_piece: Any) -> None:
    text = "The café  the"
    assert word_piece.tokenize(text) == ["the", "cafe", "the"]
    pairs = pair_responses(word_piece, large, text, (1,), (2,)).tolist()
    read = [b"".join(bytes_of(large, text)[:j]).decode() for j in pairs]
    assert read == ["", "The", "The café", text]
    back = pair_responses(large, word_piece, text, (2,), (1,)).tolist()
    assert [j for j in back if j >= 0] == [0, 1, 2, 3]


def test_a_spelt_control_token_is_text_on_both_sides(small: Any, word_piece: Any) -> None:
    text = "<|im_end|>[SEP]"
    pairs = pair_responses(small, word_piece, text, (1,), (1,)).tolist()
    ids = word_piece(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert word_piece.eos_token_id not in ids
    assert pairs[-1] == len(ids) > 5
    assert len(pairs) == len(bytes_of(small, text)) + 1 > 8


@pytest.mark.parametrize(
    ("student", "assistant", "pairs"),
    [
        ([], [], []),
        ([(0, 3)], [], [-1]),
        ([(0, 1), (1, 2), (2, 6)], [(0, 2), (2, 3), (3, 6)], [0, -1, 1]),
        # "The café": a blank in the token, in a token of its own, and left out of the offsets.
        ([(0, 3), (3, 8)], [(0, 3), (3, 4), (4, 8)], [0, 1]),
        ([(0, 3), (3, 8)], [(0, 3), (4, 8)], [0, 1]),
        ([(0, 3), (3, 4), (4, 8)], [(0, 3), (4, 8)], [0, 1, -1]),
        # "é!": two bytes of one character, whose offsets repeat; its first byte is predicted from the same text.
        ([(0, 1), (0, 1), (1, 2)], [(0, 1), (1, 2)], [0, -1, 1]),
        ([(0, 1), (0, 1), (1, 2)], [(0, 1), (0, 1), (1, 2)], [0, -1, 2]),
        # " 🔥🔥": blank and first bytes, last bytes of one and first of the other, last bytes.
        ([(0, 2), (1, 3), (2, 3)], [(0, 1), (1, 2), (2, 3)], [0, -1, -1]),
        # A token without text, in front or behind, is predicted from the same text but stands for none of it.
        ([(0, 3), (3, 5)], [(0, 0), (0, 3), (3, 3), (3, 5)], [1, 3]),
        ([(0, 0), (0, 3), (3, 3), (3, 5)], [(0, 3), (3, 5)], [-1, 0, -1, 1]),
    ],
)
def test_pairs_by_hand(student: list[tuple[int, int]], assistant: list[tuple[int, int]], pairs: list[int]) -> None:
    assert common_boundaries(student, assistant) == pairs


def test_offsets_without_the_leading_blank_make_the_same_pairs(large: Any) -> None:
    """As RoBERTa's: the token holds the blank, its offsets do not."""
    trimmed = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(large.backend_tokenizer.to_str()))
    trimmed.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    text = TEXTS[0]
    offsets = trimmed(text, return_offsets_mapping=True)["offset_mapping"]
    assert offsets != large(text, return_offsets_mapping=True)["offset_mapping"]
    assert pair_responses(large, trimmed, text, (1,), (1,)).tolist() == list(range(len(offsets) + 1))


@pytest.mark.parametrize(
    ("mine", "theirs", "ends"),
    [((5,), (6,), [1]), ((5, 4), (6, 3), [1, 2]), ((5, 4), (6,), [1, -1]), ((5,), (6, 3), [1]), ((5,), (), [-1])],
)
def test_ends_of_turn(large: Any, mine: tuple[int, ...], theirs: tuple[int, ...], ends: list[int]) -> None:
    assert pair_responses(large, large, "a", mine, theirs).tolist() == [0, *ends]


def test_a_tokenizer_without_offsets_is_refused(large: Any) -> None:
    with pytest.raises(InputError, match="the assistant's SimpleNamespace does not say which characters"):
        pair_responses(large, SimpleNamespace(is_fast=False), "a", (1,), (1,))


def test_pairs_of_rows_are_joined() -> None:
    pairs = [torch.tensor([0, -1, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([1, -1])]
    joined = join_pairs(pairs, [3, 5, 2])
    assert joined.tolist() == [0, -1, 2, 9, -1]
    assert joined.dtype == join_pairs([], []).dtype == torch.int64


TOKENS, VOCAB, OTHERS, THEIRS = 7, 23, 31, 5
PARTNER = torch.tensor([0, -1, 1, 3, -1, -1, 4])


def make_logits(seed: int, tokens: int, vocab: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(tokens, vocab, generator=torch.Generator().manual_seed(seed)) * 2).to(dtype)


def student(dtype: torch.dtype = torch.float64, vocab: int = VOCAB) -> Tensor:
    return make_logits(0, TOKENS, vocab, dtype)


def view(vocab: int = OTHERS, dtype: torch.dtype = torch.float64) -> Aligned:
    return Aligned(Dense(make_logits(1, THEIRS, vocab, dtype)), PARTNER)


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss.sum(), of)
    return result


def golden(logits: Tensor, aligned: Aligned, temperature: float, top: int | None) -> list[float]:
    """A loop in float64: sorted, filled up with zeros, all beyond `top` as one."""
    values = []
    for token, partner in enumerate(aligned.partner.tolist()):
        if partner < 0:
            values.append(0.0)
            continue
        sides = []
        for row in (logits[token], aligned.assistant[torch.tensor([partner])].logits[0]):
            scores = np.exp(row.double().numpy() / temperature - (row.double().numpy() / temperature).max())
            falling = np.sort(scores / scores.sum())[::-1]
            sides.append(np.concatenate([falling, np.zeros(max(VOCAB, OTHERS) - len(falling))]))
        if top is not None:
            sides = [np.concatenate([side[:top], [side[top:].sum()]]) for side in sides]
        values.append(float(sum(abs(p - q) for p, q in zip(*sides, strict=True))))
    return values


@pytest.mark.parametrize("top", [None, 5, VOCAB, 27, 1000])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
class TestLaws:
    def test_equals_the_value_by_hand(self, top: int | None, temperature: float) -> None:
        for logits, aligned in [(student(), view()), (student(vocab=OTHERS), view(VOCAB))]:
            loss = uld(logits, aligned, temperature, top)
            assert loss.tolist() == pytest.approx(golden(logits, aligned, temperature, top), rel=1e-12, abs=1e-14)
            assert loss[PARTNER < 0].tolist() == [0.0, 0.0, 0.0]
            assert (loss[PARTNER >= 0] > 0).all()
            assert (loss <= 2).all()

    def test_equal_distributions_over_other_ids_cost_nothing(self, top: int | None, temperature: float) -> None:
        logits = student().requires_grad_()
        shuffled = logits.detach()[:, torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))]
        beyond = torch.full((TOKENS, 4), -float("inf"), dtype=torch.float64)
        aligned = Aligned(Dense(torch.cat([shuffled, beyond], dim=-1)), torch.arange(TOKENS))
        loss = uld(logits, aligned, temperature, top)
        torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-14, rtol=0)

    def test_order_of_ids_and_constants_change_nothing(self, top: int | None, temperature: float) -> None:
        generator = torch.Generator().manual_seed(0)
        orders = [torch.randperm(vocab, generator=generator) for vocab in (VOCAB, OTHERS)]
        logits, aligned = student(), view()
        theirs = Aligned(Dense(make_logits(1, THEIRS, OTHERS)[:, orders[1]] - 300), PARTNER)
        moved = uld(logits[:, orders[0]] + 300, theirs, temperature, top)
        torch.testing.assert_close(moved, uld(logits, aligned, temperature, top), atol=1e-11, rtol=1e-11)

    def test_chunks_equal_the_whole(self, top: int | None, temperature: float) -> None:
        logits, aligned = student().requires_grad_(), view()
        whole = uld(logits, aligned, temperature, top)
        parts = [slice(0, 1), slice(1, 2), slice(2, 4), slice(4, 6), slice(6, TOKENS)]
        chunked = torch.cat([uld(logits[part], aligned[part], temperature, top) for part in parts])
        torch.testing.assert_close(chunked, whole)
        torch.testing.assert_close(gradient(chunked, logits), gradient(whole, logits))

    @pytest.mark.parametrize("partner", [torch.zeros(0, dtype=torch.int64), torch.tensor([-1, -1, -1])])
    def test_nobody_to_learn_from_gives_a_zero_that_can_be_back_propagated(
        self, top: int | None, temperature: float, partner: Tensor
    ) -> None:
        logits = make_logits(0, len(partner), VOCAB).requires_grad_()
        loss = uld(logits, Aligned(view().assistant, partner), temperature, top)
        loss.sum().backward()
        assert loss.tolist() == [0.0] * len(partner)
        assert logits.grad is not None
        assert torch.equal(logits.grad, torch.zeros_like(logits))

    def test_half_precision_logits_are_computed_in_fp32(self, top: int | None, temperature: float) -> None:
        half = student(torch.bfloat16), view(dtype=torch.bfloat16)
        loss = uld(*half, temperature, top)
        assert loss.dtype == torch.float32
        assert loss.tolist() == pytest.approx(golden(*half, temperature, top), abs=1e-6)

    def test_gradient_agrees_with_finite_differences(self, top: int | None, temperature: float) -> None:
        # Far from ties: random probabilities of this seed differ by more than the step of the differences.
        assert torch.autograd.gradcheck(lambda x: uld(x, view(), temperature, top), (student().requires_grad_(),))

    def test_extreme_logits_stay_finite(self, top: int | None, temperature: float) -> None:
        for high in (1e4, -1e4):
            logits = torch.where(student() > 0, high, -high).float().requires_grad_()
            theirs = Aligned(Dense(torch.where(make_logits(1, THEIRS, OTHERS) > 1, 1e4, -1e4).float()), PARTNER)
            loss = uld(logits, theirs, temperature, top)
            assert loss.isfinite().all()
            assert gradient(loss, logits).isfinite().all()

    def test_the_assistant_gets_no_gradient(self, top: int | None, temperature: float) -> None:
        theirs = make_logits(1, THEIRS, OTHERS).requires_grad_()
        assert not uld(student(), Aligned(Dense(theirs), PARTNER), temperature, top).requires_grad


def test_a_cut_is_off_by_at_most_twice_the_smaller_rest() -> None:
    logits, theirs = make_logits(0, 200, VOCAB), make_logits(1, 200, OTHERS)
    aligned = Aligned(Dense(theirs), torch.arange(200))
    exact = uld(logits, aligned)
    rests = [x.softmax(-1).sort(-1, descending=True).values for x in (logits, theirs)]
    for top in (1, 3, 10):
        rest = torch.minimum(*(x[:, top:].sum(-1) for x in rests))
        missing = exact - uld(logits, aligned, top=top)
        assert (missing > -1e-12).all()
        assert (missing <= 2 * rest + 1e-12).all()


def test_rows_of_the_assistant_that_stand_for_no_token_are_left_out() -> None:
    theirs = make_logits(1, THEIRS, OTHERS)
    padded = Aligned(Dense(torch.cat([theirs, theirs + 5], dim=-1), rows=OTHERS), PARTNER)
    assert torch.equal(uld(student(), padded), uld(student(), view()))


def test_a_projected_assistant_is_made_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = make_logits(2, THEIRS, 4), make_logits(3, OTHERS, 4)
    lazy, dense = Aligned(Projected(hidden, weight), PARTNER), Aligned(Dense(hidden @ weight.T), PARTNER)
    made: list[int] = []
    plain: Callable[[Projected, Tensor], Dense] = Projected.__getitem__
    monkeypatch.setattr(Projected, "__getitem__", lambda self, at: made.append(len(at)) or plain(self, at))
    parts = [slice(0, 3), slice(3, TOKENS)]
    loss = torch.cat([uld(student()[part], lazy[part]) for part in parts])
    torch.testing.assert_close(loss, uld(student(), dense))
    assert made == [2, 2]


def test_a_view_is_cut_by_slice_index_and_mask_and_moved() -> None:
    aligned = view()
    assert (aligned.kind, len(aligned), len(aligned[1:4])) == ("aligned", TOKENS, 3)
    assert aligned[torch.tensor([6, 0])].partner.tolist() == [4, 0]
    assert aligned[PARTNER >= 0].partner.tolist() == [0, 1, 3, 4]
    lazy = Aligned(Projected(make_logits(2, THEIRS, 4), make_logits(3, OTHERS, 4)), PARTNER)
    for one in (aligned, lazy):
        moved = one.to("meta")
        assert type(moved.assistant) is type(one.assistant)
        tensors = [x for x in [moved.partner, *vars(moved.assistant).values()] if isinstance(x, Tensor)]
        assert [x.device.type for x in tensors] == ["meta"] * len(tensors)


def test_a_student_learns_the_shape_of_the_assistant_s_distributions() -> None:
    logits = student(torch.float32).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.02)
    first, untouched = uld(logits, view()).sum().item(), logits.detach()[PARTNER < 0].clone()
    for _ in range(300):
        optimizer.zero_grad()
        uld(logits, view(), temperature=1.0).sum().backward()
        optimizer.step()
    assert uld(logits, view()).sum().item() < first / 10
    assert torch.equal(logits.detach()[PARTNER < 0], untouched)


@pytest.mark.parametrize(
    ("temperature", "top", "message"), [(0.0, None, "temperature: 0.0"), (1.0, 0, "top: 0 ids cannot be compared")]
)
def test_impossible_settings_are_refused(temperature: float, top: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        uld(student(), view(), temperature, top)
