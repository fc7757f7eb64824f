"""What a cache may hold of a token, and whom it serves."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mulcot.losses import Sampled
from mulcot.soft_labels import SoftLabelCache, SoftLabelDescription, SoftLabelForm, SoftLabelWriter
from mulcot.types import InputError

FINGERPRINT = {"assistant": "a1", "template": "t1"}
VOCAB = 50
TOP_K = SoftLabelForm.top_k(8, 2.0)


def make_logits(seed: int, tokens: int, vocab: int = VOCAB, scale: float = 3.0) -> Tensor:
    return torch.randn(tokens, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def test_a_loss_that_a_cache_cannot_serve_is_refused_in_words(tmp_path: Path) -> None:
    top_k = SoftLabelDescription(tmp_path, TOP_K, VOCAB, FINGERPRINT, 1)
    sampled = SoftLabelDescription(tmp_path, SoftLabelForm.sampled(9, 2.0), VOCAB, FINGERPRINT, 1)
    for about in (top_k, sampled):
        about.check_serves("kl", {"top_k", "sampled"}, 2.0)
    top_k.check_serves("kl", {"top_k"}, 1.0)
    with pytest.raises(InputError, match=r"the loss kl has T=4 and the cache .* serves T=2 and T=1: set --losses\.kl"):
        top_k.check_serves("kl", {"top_k"}, 4.0)
    with pytest.raises(InputError, match=r"has T=1 and the cache .* serves T=2: .*soft_label_temperature=1`\)"):
        sampled.check_serves("kl", {"sampled"}, 1.0)
    with pytest.raises(InputError, match=r"the loss tv takes dense or top_k soft labels and the cache .* sampled ones"):
        sampled.check_serves("tv", {"top_k", "dense"}, 2.0)


def test_forms_that_are_not_possible_are_refused() -> None:
    for wrong, message in [
        (lambda: SoftLabelForm("half", 2.0, k=3), "soft_label_form: 'half' is not known; .*'top_k', 'sampled'"),
        (lambda: SoftLabelForm.top_k(0, 2.0), "soft_label_k: 0"),
        (lambda: SoftLabelForm("top_k", 2.0), "soft_label_k: None"),
        (lambda: SoftLabelForm.sampled(0, 2.0), "soft_label_draws: 0"),
        (lambda: SoftLabelForm.sampled(40_000, 2.0), "between 1 and 32767"),
        (lambda: SoftLabelForm.top_k(3, 0.0), "temperature: 0.0 is not possible"),
        (lambda: SoftLabelForm.sampled(3, math.nan), "temperature: nan is not possible"),
        (lambda: SoftLabelForm.top_k(9, 2.0).view(make_logits(0, 1)[:, :8], torch.Generator()), "k: 9 .* the 8 ids"),
    ]:
        with pytest.raises(InputError, match=message):
            wrong()


@pytest.mark.parametrize(("draws", "vocab"), [(1, VOCAB), (16, VOCAB), (300, VOCAB), (20, 40_000)])
def test_drawn_ids_and_their_weights_are_stored_exactly(tmp_path: Path, draws: int, vocab: int) -> None:
    form = SoftLabelForm.sampled(draws, 2.0)
    written = {}
    writer = SoftLabelWriter(tmp_path, {}, form, 10, vocab_rows=vocab)
    for number, tokens in enumerate((1, 6, 9, 2)):
        view = form.view(make_logits(number, tokens, vocab), torch.Generator().manual_seed(number))
        assert isinstance(view, Sampled)
        written[number, tokens] = view
        writer.add("p", "reasoning", [number] * tokens, view)
    writer.close()
    cache = SoftLabelCache(tmp_path)
    assert (cache.kind, cache.k, cache.rounding_error) == ("sampled", None, 0.0)
    for (number, tokens), view in written.items():
        got = cache.get("p", "reasoning", [number] * tokens)
        assert isinstance(got, Sampled)
        width = got.ids.shape[-1]
        assert not view.weights[:, width:].any()
        assert torch.equal(got.ids, view.ids[:, :width])
        torch.testing.assert_close(got.weights, view.weights[:, :width], atol=0, rtol=1e-6)
        torch.testing.assert_close(got.log_probs, view.log_probs[:, :width], atol=0, rtol=2**-11)
        assert (got.temperature, got.rows) == (2.0, vocab)
    both = Sampled.cat([cache.get("p", "reasoning", [number] * tokens) for number, tokens in ((0, 1), (1, 6))])
    assert len(both) == 7
    torch.testing.assert_close(both.weights.sum(-1), torch.ones(7))


def test_weights_that_are_no_counts_are_refused(tmp_path: Path) -> None:
    form = SoftLabelForm.sampled(8, 2.0)
    view = Sampled.from_logits(make_logits(0, 3), 8, 2.0, torch.Generator(), proposal_temperature=2.0)
    with pytest.raises(InputError, match=r"post 'p', task reasoning: a weight .* is no count of draws"):
        SoftLabelWriter(tmp_path, {}, form, vocab_rows=VOCAB).add("p", "reasoning", [1, 2, 3], view)


def test_the_draws_of_a_response_follow_from_seed_post_task_and_response_alone() -> None:
    form = SoftLabelForm.sampled(8, 2.0, seed=1)
    first = form.view(make_logits(0, 5), form.generator("p", "reasoning", "r"))
    for other, is_same in [
        (form.generator("p", "reasoning", "r"), True),
        (SoftLabelForm.sampled(8, 2.0, seed=2).generator("p", "reasoning", "r"), False),
        (form.generator("q", "reasoning", "r"), False),
        (form.generator("p", "classification", "r"), False),
        (form.generator("p", "reasoning", "s"), False),
    ]:
        again = form.view(make_logits(0, 5), other)
        assert (first.ids.shape == again.ids.shape and torch.equal(first.ids, again.ids)) is is_same
