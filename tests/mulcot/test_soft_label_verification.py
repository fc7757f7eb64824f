"""What the build says of a cache's errors is right, and a cache that is wrong is not finished."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mulcot.losses import Sampled, TopK
from mulcot.soft_labels import Check, SoftLabelCache, SoftLabelForm, SoftLabelWriter
from mulcot.soft_labels.forms import CachedView
from mulcot.soft_labels.shards import ShardFormat
from mulcot.soft_labels.verification import SUMS, measure, refuse_bug, summary
from mulcot.types import InputError

VOCAB, T = 300, 2.0
TOP_K, DRAWN = SoftLabelForm.top_k(16, T), SoftLabelForm.sampled(16, T)


def make_logits(seed: int, tokens: int = 40, scale: float = 5.0) -> Tensor:
    return torch.randn(tokens, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def views(form: SoftLabelForm, logits: Tensor, seed: int = 0) -> tuple[CachedView, CachedView]:
    """The view and what a cache gives for it."""
    exact = form.view(logits, torch.Generator().manual_seed(seed))
    shards = ShardFormat(form, VOCAB)
    return exact, shards.decode(shards.encode(exact))


def sums_of(form: SoftLabelForm, logits: Tensor, exact: CachedView, stored: CachedView) -> dict[str, float]:
    return dict(zip(SUMS, measure(logits, exact, stored, form).sum(dim=0).tolist(), strict=True))


def near_student(logits: Tensor) -> Tensor:
    return 0.8 * logits + torch.randn(VOCAB, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", [TOP_K, DRAWN])
@pytest.mark.parametrize("student", ["near", "uniform"])
def test_the_errors_are_those_of_a_float64_computation(form: SoftLabelForm, student: str) -> None:
    logits = make_logits(0)
    exact, stored = views(form, logits)
    found = summary(form, sums_of(form, logits, exact, stored), len(logits))[student]
    p = (logits.double() / T).softmax(-1)
    q = ((near_student(logits) if student == "near" else logits * 0).double() / T).softmax(-1)
    dense = (p * (p / q).log()).sum(-1)
    # What the student learns from: p where it is known, and for all others the student's own shape.
    if isinstance(stored, TopK):
        kept = torch.zeros_like(p).scatter(-1, stored.ids, 1.0).bool()
        rest = (p * ~kept).sum(-1, keepdim=True)
        learnt = torch.where(kept, p, rest * q / (q * ~kept).sum(-1, keepdim=True))
    else:
        learnt = torch.zeros_like(p).scatter_add(-1, stored.ids, stored.weights.double())
    cached = (learnt * (torch.where(learnt > 0, p, 1.0).log() - q.log())).sum(-1)
    if form.kind == "top_k":
        cached = (torch.where(kept, p * (p / q).log(), 0.0)).sum(-1)
        cached += rest[:, 0] * (rest[:, 0] / (q * ~kept).sum(-1)).log()
    assert found["kl"] == pytest.approx(float(dense.mean()), rel=1e-4)
    assert found["kl_cached"] == pytest.approx(float(cached.mean()), rel=5e-3)
    assert found["loss_error"] == pytest.approx(float((cached - dense).mean() / dense.mean()), rel=0.02, abs=3e-3)
    error = ((learnt - p).norm() / (p - q).norm()).item()
    assert found["gradient_error"] == pytest.approx(error, rel=0.02)


def test_it_is_measured_in_inference_mode_and_without_a_trace() -> None:
    with torch.inference_mode():
        logits = make_logits(0)
        found = measure(logits, *views(TOP_K, logits), TOP_K)
    assert not found.requires_grad
    assert found.isfinite().all()
    assert found.shape == (40, len(SUMS))


@pytest.mark.parametrize("form", [SoftLabelForm.top_k(1, T), TOP_K, SoftLabelForm.top_k(VOCAB, 1.0),
                                  SoftLabelForm.sampled(1, 1.0), DRAWN, SoftLabelForm.sampled(64, 4.0)])  # fmt: skip
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0, 30.0])
@pytest.mark.parametrize("tokens", [1, 40, 400])
def test_right_labels_are_never_refused(form: SoftLabelForm, scale: float, tokens: int) -> None:
    """From uniform to certain assistants."""
    for seed in range(5):
        logits = make_logits(seed, tokens, scale)
        refuse_bug(form, sums_of(form, logits, *views(form, logits, seed)), tokens, "here")


def other_ids(view: TopK) -> TopK:
    return replace(view, ids=(view.ids + 1) % VOCAB)


def other_order(view: TopK) -> TopK:
    return replace(view, ids=view.ids.flip(-1))


def other_token(view: TopK) -> TopK:
    return TopK(*(value.roll(1, 0) for value in view.tensors().values()), view.temperature, view.rows)


def no_tail(view: TopK) -> TopK:
    return replace(view, log_z=(view.log_probs / T).logsumexp(-1))


def not_a_number(view: TopK) -> TopK:
    return replace(view, log_z=view.log_z * math.nan)


@pytest.mark.parametrize("mistake", [other_ids, other_order, other_token, no_tail, not_a_number])
def test_mistakes_in_top_k_labels_are_refused(mistake: object) -> None:
    logits = make_logits(0, scale=3.0)
    exact, stored = views(TOP_K, logits)
    with pytest.raises(InputError, match="here: the soft labels are wrong: "):
        refuse_bug(TOP_K, sums_of(TOP_K, logits, exact, mistake(stored)), len(logits), "here")  # type: ignore[operator]


@pytest.mark.parametrize("mistake", ["temperature", "ids", "weights"])
def test_mistakes_in_drawn_labels_are_refused(mistake: str) -> None:
    logits = make_logits(0, tokens=400, scale=6.0)
    _, stored = views(DRAWN, logits)
    assert isinstance(stored, Sampled)
    if mistake == "temperature":  # drawn at T=1
        stored = Sampled.from_logits(logits, 16, 1.0, torch.Generator().manual_seed(0))
        stored = replace(stored, log_probs=(logits / T).log_softmax(-1).gather(-1, stored.ids), temperature=T)
    elif mistake == "ids":
        stored = replace(stored, ids=(stored.ids + 1) % VOCAB)
    else:  # every id that was drawn counts alike
        is_drawn = stored.weights > 0
        stored = replace(stored, weights=is_drawn / is_drawn.sum(-1, keepdim=True))
    with pytest.raises(InputError, match="here: the soft labels are wrong: "):
        refuse_bug(DRAWN, sums_of(DRAWN, logits, stored, stored), len(logits), "here")


def test_drawn_labels_are_right_on_average_and_a_cut_is_not() -> None:
    logits = make_logits(1, tokens=2_000, scale=3.0)
    drawn = summary(DRAWN, sums_of(DRAWN, logits, *views(DRAWN, logits)), 2_000)
    cut = summary(TOP_K, sums_of(TOP_K, logits, *views(TOP_K, logits)), 2_000)
    for student in ("near", "uniform"):
        found = drawn[student]
        assert abs(found["loss_error"]) < 3 * found["loss_standard_error"] + 0.003
        assert found["loss_spread"] / math.sqrt(2_000) == pytest.approx(found["loss_standard_error"], rel=0.1)
        assert cut[student]["loss_error"] < -0.2
    assert drawn["kept_mass"] < cut["kept_mass"]


def test_a_wrong_view_stops_the_build_before_anything_of_it_is_committed(tmp_path: Path) -> None:
    logits = make_logits(0, tokens=5, scale=3.0)
    writer = SoftLabelWriter(tmp_path, {}, TOP_K, vocab_rows=VOCAB)
    for number in range(20):  # the view is of other logits than those that it is checked against
        view = TOP_K.view(make_logits(number, tokens=5, scale=3.0), torch.Generator())
        writer.add("p", "reasoning", [number] * 5, view, check=Check([4], logits[4:]))
    with pytest.raises(InputError, match=r"shard-r000-00000\.safetensors: the soft labels are wrong"):
        writer.close()
    assert not list(tmp_path.iterdir())


def test_the_manifest_keeps_the_errors_of_every_shard_and_rank(tmp_path: Path) -> None:
    logits = [make_logits(number, tokens=5) for number in range(12)]
    writers = [SoftLabelWriter(tmp_path, {}, TOP_K, 10, vocab_rows=VOCAB, rank=rank) for rank in range(2)]
    for number, each in enumerate(logits):
        view = TOP_K.view(each, torch.Generator())
        writers[number % 2].add("p", "reasoning", [number] * 5, view, check=Check([1, 4], each[[1, 4]]))
    writers[1].flush()
    writers[0].close()
    assert len(list(tmp_path.glob("*.safetensors"))) == 6
    checked = torch.cat([each[[1, 4]] for each in logits])
    expected = summary(TOP_K, sums_of(TOP_K, checked, *views(TOP_K, checked)), 24)
    cache = SoftLabelCache(tmp_path)
    assert cache.verification["tokens"] == 24
    assert cache.verification["near"] == pytest.approx(expected["near"], rel=1e-4)
    everything = TOP_K.view(torch.cat(logits), torch.Generator())
    assert isinstance(everything, TopK)
    kept = 1 - everything.at(T)[1].exp().mean()
    assert cache.kept_mass == pytest.approx(float(kept), rel=1e-4)


def test_a_cache_without_a_check_says_so(tmp_path: Path) -> None:
    SoftLabelWriter(tmp_path, {}, TOP_K, vocab_rows=VOCAB).close()
    cache = SoftLabelCache(tmp_path)
    assert (cache.tokens, cache.verification["tokens"], "near" in cache.verification) == (0, 0, False)
