"""The chunked head is the plain way, logits and then autograd, in value and gradient, and keeps no logits."""

import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mulcot.losses import (
    Dense,
    Head,
    HeadLoss,
    Projected,
    Sampled,
    Term,
    TopK,
    View,
    chunked_loss,
    cross_entropy,
    forward_kl,
)
from mulcot.losses import chunked_head as module
from mulcot.types import InputError

TOKENS, HIDDEN, VOCAB, TEMPERATURE = 13, 8, 37, 2.0


def hard(logits: Tensor, targets: Tensor, view: View | None) -> Tensor:
    return cross_entropy(logits, targets)


def soft(logits: Tensor, targets: Tensor, view: View | None) -> Tensor:
    assert isinstance(view, TopK)
    return TEMPERATURE**2 * forward_kl(logits, view, TEMPERATURE)


def dense_kl(logits: Tensor, targets: Tensor, view: View | None) -> Tensor:
    assert isinstance(view, Dense)
    log_p, log_q = view.at(TEMPERATURE), (logits / TEMPERATURE).log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def their_own(logits: Tensor, targets: Tensor, view: View | None) -> Tensor:
    margin = logits - logits.gather(-1, targets.unsqueeze(-1)) + 1.0
    return margin.relu().square().mean(dim=-1)


CE = Term("ce", hard, 0.7, is_soft=False)
KL = Term("kl", soft, 0.3, is_soft=True)
TERMS = [CE, KL, Term("margin", their_own, 0.2, is_soft=False)]


def rand(*shape: int, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def make(
    tokens: int = TOKENS, trained: bool = True, bias: bool = False, softcap: float | None = None, dtype: Any = None
) -> tuple[Tensor, Head, Tensor, TopK]:
    """Hidden states, a head, targets and the assistant's view."""
    dtype = dtype or torch.float32
    hidden = rand(tokens, HIDDEN, seed=1, dtype=dtype).requires_grad_()
    weight = rand(VOCAB, HIDDEN, seed=2, dtype=dtype).requires_grad_(trained)
    shift = rand(VOCAB, seed=3, dtype=dtype).requires_grad_(trained) if bias else None
    targets = torch.arange(tokens) * 5 % VOCAB
    return hidden, Head(weight, shift, softcap), targets, TopK.from_logits(rand(tokens, VOCAB, seed=4), 5, TEMPERATURE)


def plain_loss(hidden: Tensor, head: Head, targets: Tensor, view: View | None, terms: list[Term]) -> Tensor:
    """What the chunked head must equal."""
    logits = functional.linear(hidden, head.weight, head.bias)
    if head.softcap is not None:
        logits = head.softcap * (logits.float() / head.softcap).tanh()
    if isinstance(view, Projected):
        view = view[:]
    return sum((term.coefficient * term.loss(logits, targets, view).sum() for term in terms), torch.zeros(()))


def gradients(loss: Tensor, *of: Tensor | None) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [tensor for tensor in of if tensor is not None and tensor.requires_grad]))


def assert_near(found: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-5) -> None:
    """Per tensor: the norm of the difference over the norm."""
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        assert distance(mine, theirs) <= tolerance


def distance(mine: Tensor, theirs: Tensor) -> float:
    return float((mine.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.parametrize("chunk_tokens", [1, 7, 100, None])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_it_equals_the_plain_way(chunk_tokens: int | None, trained: bool, bias: bool, softcap: float | None) -> None:
    hidden, head, targets, view = make(trained=trained, bias=bias, softcap=softcap)
    wanted = plain_loss(hidden, head, targets, view, TERMS)
    found = chunked_loss(hidden, head, targets, view, TERMS, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(found.total, wanted, rtol=1e-6, atol=0)
    # The total is scaled as the stage scales it: by the tokens of the step, the ranks, the task's weight.
    parts = (hidden, head.weight, head.bias)
    assert_near(gradients(found.total / 40 * 3, *parts), gradients(wanted / 40 * 3, *parts))
    assert found.predicted is found.gradient_norms is None


def test_slices_of_a_chunk_are_put_together_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLICE_BYTES", {"cpu": 2 * VOCAB * 4})  # two tokens at a time
    for inspect in (False, True):
        hidden, head, targets, view = make(bias=True, softcap=3.0)
        wanted = gradients(plain_loss(hidden, head, targets, view, TERMS), hidden, head.weight, head.bias)
        found = chunked_loss(hidden, head, targets, view, TERMS, chunk_tokens=5, inspect=inspect)
        assert_near(gradients(found.total, hidden, head.weight, head.bias), wanted)


def test_the_parts_are_told_apart() -> None:
    hidden, head, targets, view = make()
    found = chunked_loss(hidden, head, targets, view, TERMS, chunk_tokens=4)
    logits = hidden @ head.weight.t()
    for term in TERMS:
        torch.testing.assert_close(found.per_token[term.name], term.loss(logits, targets, view).detach())
    assert not any(loss.requires_grad for loss in found.per_token.values())


def test_a_head_that_is_the_embedding_too_gets_both_gradients() -> None:
    def loss_of(embedding: nn.Embedding, of: Callable[[Tensor, Head], Tensor]) -> Tensor:
        hidden = embedding(torch.arange(TOKENS)).tanh()
        return of(hidden, Head(embedding.weight))

    embedding = nn.Embedding.from_pretrained(rand(VOCAB, HIDDEN, seed=2), freeze=False)
    *_, targets, view = make()
    wanted = loss_of(embedding, lambda hidden, head: plain_loss(hidden, head, targets, view, TERMS))
    found = loss_of(
        embedding, lambda hidden, head: chunked_loss(hidden, head, targets, view, TERMS, chunk_tokens=5).total
    )
    assert_near(gradients(found, embedding.weight), gradients(wanted, embedding.weight))


@pytest.mark.parametrize("use_autocast", [True, False])
def test_bf16_is_as_exact_as_the_plain_way_and_gradients_have_the_parameter_s_type(use_autocast: bool) -> None:
    dtype = torch.float32 if use_autocast else torch.bfloat16
    tokens = 200
    hidden, head, targets, view = make(tokens, bias=True, dtype=dtype)
    parts = (hidden, head.weight, head.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=use_autocast):
        total = chunked_loss(hidden, head, targets, view, TERMS, chunk_tokens=64).total
        plain = plain_loss(hidden, head, targets, view, TERMS)
    assert total.dtype == torch.float32
    found, wanted = gradients(total, *parts), gradients(plain, *parts)
    assert_near(found, wanted, 2e-2)
    exact = [part.detach().double().requires_grad_() for part in parts]
    truth = gradients(plain_loss(exact[0], Head(exact[1], exact[2]), targets, view, TERMS), *exact)
    for mine, theirs, true in zip(found, wanted, truth, strict=True):
        assert distance(mine, true) <= 1.1 * distance(theirs, true) + 1e-3


def test_sums_over_chunks_are_in_fp32() -> None:
    tokens = 512
    hidden, head, targets, view = make(tokens, dtype=torch.bfloat16)
    few = gradients(chunked_loss(hidden, head, targets, view, [CE], chunk_tokens=512).total, head.weight)
    many = gradients(chunked_loss(hidden, head, targets, view, [CE], chunk_tokens=8).total, head.weight)
    assert_near(many, few, 4e-3)  # one rounding to bf16; 64 sums in it would be off by far more


def test_a_body_under_gradient_checkpointing() -> None:
    *_, targets, view = make()
    x, weight = rand(TOKENS, 6, seed=7), rand(VOCAB, HIDDEN, seed=2)
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN))
    wanted = gradients(plain_loss(body(x), Head(weight), targets, view, TERMS), *body.parameters())
    for reentrant in (False, True):
        hidden = checkpoint(body, x.clone().requires_grad_(), use_reentrant=reentrant)
        loss = chunked_loss(hidden, Head(weight), targets, view, TERMS, chunk_tokens=4).total
        body.zero_grad()
        loss.backward()
        assert_near([parameter.grad for parameter in body.parameters()], wanted)


def test_a_frozen_head_gets_no_gradient_and_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_add_product", lambda *_, **__: pytest.fail("a gradient of the head was computed"))
    hidden, head, targets, view = make(trained=False)
    chunked_loss(hidden, head, targets, view, TERMS).total.backward()
    assert hidden.grad is not None
    assert head.weight.grad is None


def test_a_head_alone_can_be_trained() -> None:
    hidden, head, targets, view = make()
    found = chunked_loss(hidden.detach(), head, targets, view, TERMS, chunk_tokens=4)
    assert_near(
        gradients(found.total, head.weight), gradients(plain_loss(hidden, head, targets, view, TERMS), head.weight)
    )


def test_evaluation_computes_values_alone() -> None:
    hidden, head, targets, view = make()
    seen = []

    def watching(logits: Tensor, targets: Tensor, view: View | None) -> Tensor:
        seen.append(logits.requires_grad or torch.is_grad_enabled())
        return cross_entropy(logits, targets)

    with torch.no_grad():
        found = chunked_loss(hidden, head, targets, view, [Term("ce", watching, 1.0, False)], inspect=True)
    assert seen == [False]
    assert not found.total.requires_grad
    assert found.gradient_norms is None
    torch.testing.assert_close(found.predicted, (hidden @ head.weight.t()).argmax(dim=-1))


@pytest.mark.parametrize("inspect", [True, False])
@pytest.mark.parametrize(("tokens", "terms"), [(0, TERMS), (0, []), (TOKENS, [])])
def test_nothing_to_learn_is_a_zero_that_can_be_back_propagated(tokens: int, terms: list[Term], inspect: bool) -> None:
    hidden, head, targets, view = make(tokens, bias=True)
    found = chunked_loss(hidden, head, targets, view, terms, inspect=inspect)
    assert found.total.item() == 0.0
    assert {name: loss.shape for name, loss in found.per_token.items()} == {term.name: (tokens,) for term in terms}
    for gradient, part in zip(
        gradients(found.total, hidden, head.weight, head.bias), (hidden, head.weight, head.bias), strict=True
    ):
        torch.testing.assert_close(gradient, torch.zeros_like(part))


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradient_norms_are_those_of_two_backward_passes(softcap: float | None) -> None:
    hidden, head, targets, view = make(bias=True, softcap=softcap)
    found = chunked_loss(hidden, head, targets, view, TERMS, chunk_tokens=5, inspect=True)
    assert found.gradient_norms is not None
    for kind, is_soft in (("hard", False), ("soft", True)):
        of_kind = [term for term in TERMS if term.is_soft == is_soft]
        (wanted,) = gradients(plain_loss(hidden, head, targets, view, of_kind), hidden)
        torch.testing.assert_close(found.gradient_norms[kind], wanted.norm(), rtol=1e-5, atol=0)
    parts = (hidden, head.weight, head.bias)
    plain = plain_loss(hidden, head, targets, view, TERMS)
    assert_near(gradients(found.total, *parts), gradients(plain, *parts))
    without = chunked_loss(hidden, head, targets, view, [CE], inspect=True).gradient_norms
    assert without is not None
    assert float(without["soft"]) == 0.0


def test_an_assistant_that_is_projected_too_comes_dense_in_chunks() -> None:
    hidden, head, targets, _ = make()
    view = Projected(rand(TOKENS, 6, seed=8), rand(VOCAB, 6, seed=9), rand(VOCAB, seed=10))
    terms = [CE, Term("kl", dense_kl, 0.5, is_soft=True)]
    found = chunked_loss(hidden, head, targets, view, terms, chunk_tokens=5)
    wanted = plain_loss(hidden, head, targets, view, terms)
    torch.testing.assert_close(found.total, wanted)
    assert_near(gradients(found.total, hidden, head.weight), gradients(wanted, hidden, head.weight))


def test_views_are_cut_along_their_tokens() -> None:
    hidden, head, targets, _ = make()
    ids = torch.arange(TOKENS * 2).view(TOKENS, 2) % VOCAB
    view = Sampled(ids, torch.ones(TOKENS, 2), torch.zeros(TOKENS, 2), 1.0)

    def sampled(logits: Tensor, targets: Tensor, view: View | None) -> Tensor:
        assert isinstance(view, Sampled)
        return -(view.weights * logits.log_softmax(dim=-1).gather(-1, view.ids)).sum(dim=-1)

    term = Term("sampled", sampled, 1.0, is_soft=True)
    wanted = plain_loss(hidden, head, targets, view, [term])
    torch.testing.assert_close(chunked_loss(hidden, head, targets, view, [term], chunk_tokens=4).total, wanted)


def test_a_term_of_coefficient_zero_is_seen_and_not_learnt() -> None:
    hidden, head, targets, view = make()
    nothing = Term("nothing", lambda logits, targets, view: logits.sum(dim=-1) / 0, 0.0, is_soft=False)
    found = chunked_loss(hidden, head, targets, view, [CE, nothing])
    assert not found.per_token["nothing"].isfinite().any()
    torch.testing.assert_close(found.total, plain_loss(hidden, head, targets, view, [CE]))
    assert all(gradient.isfinite().all() for gradient in gradients(found.total, hidden, head.weight))


def test_a_constant_term_and_one_that_uses_a_single_logit_are_losses_too() -> None:
    hidden, head, targets, view = make()
    one = Term("one", lambda logits, targets, view: logits[:, 0], 1.0, is_soft=False)
    constant = Term("constant", lambda logits, targets, view: torch.ones(len(targets)), 1.0, is_soft=False)
    whole = Term("whole", lambda logits, targets, view: logits.sum(dim=-1), 1.0, is_soft=False)
    found = chunked_loss(hidden, head, targets, view, [one, constant, whole], chunk_tokens=4)
    wanted = plain_loss(hidden, head, targets, view, [one, constant, whole])
    torch.testing.assert_close(found.total, wanted)
    torch.testing.assert_close(found.per_token["one"], (hidden @ head.weight[0]).detach())
    assert_near(gradients(found.total, hidden, head.weight), gradients(wanted, hidden, head.weight))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen_where_it_is(bad: float) -> None:
    hidden, head, targets, view = make()
    with torch.no_grad():
        hidden[6, 0] = bad
    found = chunked_loss(hidden, head, targets, view, TERMS, chunk_tokens=4)
    assert not found.total.isfinite()
    assert found.per_token["ce"].isfinite().tolist() == [token != 6 for token in range(TOKENS)]


def test_gradients_are_handed_out_once_and_have_no_gradient() -> None:
    hidden, head, targets, view = make()
    total = chunked_loss(hidden, head, targets, view, TERMS).total
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(total, hidden, create_graph=True)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        total.backward()


def test_what_would_be_computed_wrongly_is_refused() -> None:
    hidden, head, targets, view = make()
    with pytest.raises(InputError, match="13 hidden states, 12 targets, 13 soft labels"):
        chunked_loss(hidden, head, targets[1:], view, TERMS)
    with pytest.raises(InputError, match="12 soft labels"):
        chunked_loss(hidden, head, targets, view[1:], TERMS)
    with pytest.raises(InputError, match=r"a name of its own; these are \['ce', 'ce'\]"):
        chunked_loss(hidden, head, targets, view, [CE, CE])
    with pytest.raises(InputError, match="chunk_tokens: 0"):
        chunked_loss(hidden, head, targets, view, TERMS, chunk_tokens=0)
    mean = Term("mean", lambda logits, targets, view: logits.mean(), 1.0, is_soft=False)
    with pytest.raises(InputError, match=r"the loss mean gave back \[\] for 13 tokens"):
        chunked_loss(hidden, head, targets, view, [mean])


class Allocated(TorchDispatchMode):
    """The highest number of bytes that live tensors had which were made under it, and the largest of them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()).data_ptr() not in self.known:
                self.known.add(storage.data_ptr())
                self.now += storage.nbytes()
                self.largest = max(self.largest, storage.nbytes())
                weakref.finalize(storage, self._freed, storage.data_ptr(), storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def _freed(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.now -= size


def run_measured(loss: Callable[..., HeadLoss | Tensor], trained: bool) -> tuple[Allocated, int]:
    """What one forward and backward pass allocate, and the largest tensor that autograd saves for the latter."""
    tokens, vocab = 512, 2000
    hidden = rand(tokens, HIDDEN, seed=1).requires_grad_()
    head = Head(rand(vocab, HIDDEN, seed=2).requires_grad_(trained))
    targets, view = torch.arange(tokens), TopK.from_logits(rand(tokens, vocab, seed=4), 5, TEMPERATURE)
    saved = [0]

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.nbytes)
        return tensor

    with Allocated() as allocated, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        found = loss(hidden, head, targets, view, [CE, KL])
        (found.total if isinstance(found, HeadLoss) else found).backward()
    return allocated, max(saved)


@pytest.mark.parametrize("trained", [True, False])
def test_logits_of_all_tokens_are_never_there(trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = 512 * 2000 * 4
    chunk = everything // 32
    monkeypatch.setattr(module, "_SLICE_BYTES", {"cpu": chunk // 4})
    ours, saved = run_measured(partial(chunked_loss, chunk_tokens=16), trained)
    assert saved <= chunk // 4
    assert ours.largest == chunk
    # Beside the buffer there are the terms' temporaries for a slice, and what is small: gradients, losses per token.
    assert ours.peak <= chunk + 20 * chunk // 4 + 2000 * HIDDEN * 4 + 4 * 512 * HIDDEN * 4
    plain, plain_saved = run_measured(plain_loss, trained)
    assert plain_saved == everything  # what is measured is there to be measured
    assert plain.peak >= 3 * everything


DDP = """
import sys
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from mulcot.losses import Head, Term, TopK, chunked_loss, cross_entropy

rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
term = Term("ce", lambda logits, targets, view: cross_entropy(logits, targets), 1.0, False)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.body, self.untied = nn.Embedding(37, 8), nn.Linear(8, 8), nn.Linear(8, 37)
    def forward(self, ids, plain):
        hidden, total = self.body(self.embedding(ids)), 0.0
        for head in (Head(self.embedding.weight), Head(self.untied.weight, self.untied.bias)):
            logits = nn.functional.linear(hidden, head.weight, head.bias)
            total = total + (cross_entropy(logits, ids).sum() if plain
                             else chunked_loss(hidden, head, ids, None, [term], chunk_tokens=2).total)
        return total

shares = [torch.tensor([1, 5, 9, 2, 2]), torch.tensor([], dtype=torch.int64)]  # the second rank has no post
model = DistributedDataParallel(Model())
for step in range(2):
    model.zero_grad()
    (model(shares[(rank + step) % 2], plain=False) * 2).backward()
alone = Model()
alone(shares[0], plain=True).backward()
for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
    assert (mine.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm()
distributed.destroy_process_group()
"""


def test_gradients_of_the_head_are_averaged_over_ranks(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", DDP, str(rank), str(tmp_path / "meeting")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], told


@pytest.mark.parametrize(("vocab", "expected"), [(32_000, 256), (1_000, 7_340)])
def test_on_a_cpu_a_chunk_is_256_tokens_or_28_mib(vocab: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer tokens would slow the products down, more are memory for nothing."""
    sliced: list[int] = []
    projected: list[int] = []
    plain = torch.mm

    def noted(logits: Tensor, targets: Tensor, view: object) -> Tensor:
        sliced.append(len(logits))
        return cross_entropy(logits, targets)

    def counted(left: Tensor, right: Tensor, **given: Any) -> Tensor:
        projected.append(len(left))
        return plain(left, right, **given)

    monkeypatch.setattr(torch, "mm", counted)
    hidden, targets = torch.randn(8_000, 2), torch.zeros(8_000, dtype=torch.int64)
    chunked_loss(hidden, Head(torch.randn(vocab, 2)), targets, None, [Term("ce", noted, 1.0, is_soft=False)])
    assert projected[0] == expected
    assert max(sliced) * vocab * 4 <= 8 * 2**20
