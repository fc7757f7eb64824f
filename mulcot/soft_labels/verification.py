"""What a cache costs: its loss and gradient against those of the assistant's whole distribution, on a sample of tokens.

There is no student when a cache is built, so two stand in for it, at the cache's T:

- `near`, what a student in training is like: the assistant's logits, times 0.8 and with normal noise of standard
  deviation 1 added, the same noise for every token;
- `uniform`, a student that knows nothing: every id is equally likely.

The loss is forward KL, its gradient the one with respect to the student's logits, both without the factor T².
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from mulcot.losses import TopK, forward_kl
from mulcot.losses.views import accumulable
from mulcot.soft_labels.forms import CachedView, SoftLabelForm
from mulcot.types import InputError

STUDENTS: Final = ("near", "uniform")
NEAR: Final = "0.8 * the assistant's logits + normal noise of standard deviation 1, the same for every token"
UNIFORM: Final = "every id equally likely"
_SCALE: Final = 0.8

_EACH: Final = (
    "dense",  # KL of the whole distribution
    "cached",  # KL of the stored view
    "rounding",  # |KL of the stored view - KL of the view before rounding|
    "squared",  # (cached - dense)²
    "variance",  # what draws are expected to make of `squared`
    "gradient",  # |dense gradient|²
    "gradient_error",  # |stored view's gradient - dense gradient|²
    "gradient_variance",  # what draws are expected to make of `gradient_error`
    "gradient_shift",  # Σ_v |stored view's gradient - dense gradient|, times T
)
SUMS: Final = ("kept", *(f"{student}.{name}" for student in STUDENTS for name in _EACH))
"""What `measure` gives for a token; of many tokens the sums are kept."""

_SIGMAS: Final = 6.0
_NATS: Final = 0.01
"""What rounding to fp16 and sums in fp32 may change a KL by."""
_SHARE: Final = 0.02
"""As `_NATS`, relative to the KL; the rounding of log-probabilities is relative to them."""
_LARGEST_LOG_RATIO: Final = 50.0
"""|log p/q| of an id that may be drawn at all, in nats."""


def measure(logits: Tensor, exact: CachedView, stored: CachedView, form: SoftLabelForm) -> Tensor:
    """Errors of the stored view of some tokens.

    Args:
        logits: the assistant's, `[tokens, vocab]`: the ids that there were to choose from.
        exact: the view of them before rounding.
        stored: the view as the cache gives it.
        form: the cache's.

    Returns:
        `[tokens, len(SUMS)]` in fp64 on the CPU.
    """
    # Prediction runs in inference mode, whose tensors take no part in a backward.
    with torch.inference_mode(False), torch.enable_grad():
        logits = accumulable(logits.detach()).clone()
        exact, stored = _plain(exact, logits.device), _plain(stored, logits.device)
        log_p = (logits / form.temperature).log_softmax(dim=-1)
        columns = [kept_mass(exact, form.temperature)]
        for student in (_near(logits), torch.zeros_like(logits)):
            columns += _errors(student, log_p, exact, stored, form)
        return torch.stack(columns, dim=-1).detach().double().cpu()


def _near(logits: Tensor) -> Tensor:
    """The stand-in of this name."""
    noise = torch.randn(logits.shape[-1], generator=torch.Generator().manual_seed(0))
    return _SCALE * logits + noise.to(logits)


def _errors(student: Tensor, log_p: Tensor, exact: CachedView, stored: CachedView, form: SoftLabelForm) -> list[Tensor]:
    """The columns `_EACH` for one student's logits."""
    temperature = form.temperature
    student = student.requires_grad_()
    cached = forward_kl(student, stored, temperature)
    (gradient,) = torch.autograd.grad(cached.sum(), student)
    with torch.no_grad():
        p, log_q = log_p.exp(), (student / temperature).log_softmax(dim=-1)
        ratio = log_p - log_q
        dense = (p * ratio).sum(dim=-1)
        right = (log_q.exp() - p) / temperature
        off = gradient - right
        variance = gradient_variance = torch.zeros_like(dense)
        if form.draws is not None:
            variance = ((p * ratio.square()).sum(dim=-1) - dense.square()).clamp(min=0) / form.draws
            gradient_variance = (1 - p.square().sum(dim=-1)) / form.draws / temperature**2
        return [
            dense,
            cached.detach(),
            (cached.detach() - forward_kl(student, exact, temperature)).abs(),
            (cached.detach() - dense).square(),
            variance,
            right.square().sum(dim=-1),
            off.square().sum(dim=-1),
            gradient_variance,
            off.abs().sum(dim=-1) * temperature,
        ]


def kept_mass(view: CachedView, temperature: float) -> Tensor:
    """The probability at the view's T `[tokens]` of the ids that it has."""
    if isinstance(view, TopK):
        return -view.at(temperature)[1].expm1()
    return (view.log_probs.exp() * (view.weights > 0)).sum(dim=-1)


def moved_mass(exact: CachedView, stored: CachedView, temperature: float) -> Tensor:
    """The probability at T `[tokens]` that rounding moves between ids (total variation); drawn ids are exact."""
    if not isinstance(exact, TopK) or not isinstance(stored, TopK):
        return torch.zeros(len(exact))
    return (exact.at(temperature)[0].exp() - stored.at(temperature)[0].exp()).abs().sum(dim=-1) / 2


def _plain(view: CachedView, device: torch.device) -> CachedView:
    """The view in tensors of this mode and on this device."""
    parts = {name: value.to(device).clone() for name, value in view.tensors().items()}
    return type(view)(**parts, temperature=view.temperature, rows=view.rows)


def refuse_bug(form: SoftLabelForm, sums: Mapping[str, float], tokens: int, where: str) -> None:
    """Refuse errors that neither the cut to k ids, nor drawing, nor rounding explains.

    Of `top_k`: rounding changes no KL by more than 0.01 nats and 2%; the KL is at most the dense one; and the
    gradient differs by no more than twice the probability that was cut off. Of `sampled`: the mean KL is the dense one
    within six standard errors and what a few rare draws add, and the gradient's variance is at most ten times what the
    number of draws lets expect.

    Args:
        form: the cache's.
        sums: of `measure`, by name, over `tokens` tokens.
        tokens: at least one.
        where: what the message begins with.

    Raises:
        InputError: the stored labels are not those of the assistant.
    """
    mean = {name: value / tokens for name, value in sums.items()}
    if not all(map(math.isfinite, mean.values())):
        raise InputError(f"{where}: the soft labels are wrong: their verification gives no number (NaN or infinity)")
    for student in STUDENTS:
        of = {name: mean[f"{student}.{name}"] for name in _EACH}
        slack = _NATS + _SHARE * of["dense"]
        if form.kind == "top_k":
            limits = {
                "rounding changes the loss": (of["rounding"], slack),
                "the loss exceeds the dense one": (of["cached"] - of["dense"], slack),
                "the gradient differs": (of["gradient_shift"], 2 * (1 - mean["kept"]) + _SHARE),
            }
        else:
            # Bernstein's bound: a rare id moves the mean of few draws by more than their standard error says.
            drawn = tokens * (form.draws or 1)
            error = _SIGMAS * math.sqrt(of["variance"] / tokens) + 12 * _LARGEST_LOG_RATIO / drawn
            expected = 10 * of["gradient_variance"] + 20 / (drawn * (form.draws or 1) * form.temperature**2)
            limits = {
                "the mean loss differs from the dense one": (abs(of["cached"] - of["dense"]), error + slack),
                "the gradient's variance": (of["gradient_error"], expected + 1e-6),
            }
        for what, (found, limit) in limits.items():
            if found > limit:
                raise InputError(
                    f"{where}: the soft labels are wrong: {what}: {found:.3g}, and at most {limit:.3g} can be "
                    f"explained (student {student!r}, {tokens} tokens); this is a mistake in mulcot, please report it"
                )


def summary(form: SoftLabelForm, sums: Mapping[str, float], tokens: int) -> dict[str, Any]:
    """The errors as the manifest and the stage's metrics have them; None where nothing was checked.

    `kl` and `kl_cached` are means in nats; `loss_error` is their difference, `loss_spread` the root mean square of it
    over tokens, both relative to `kl`, and so is `loss_standard_error`, what is expected of a mean over so many tokens
    of draws; `gradient_error` is the norm of the difference over the norm, of all tokens together.
    """
    described = {"tokens": tokens, "temperature": form.temperature, "student": {"near": NEAR, "uniform": UNIFORM}}
    if not tokens:
        return described
    result: dict[str, Any] = {**described, "kept_mass": sums["kept"] / tokens}
    for student in STUDENTS:
        of = {name: sums[f"{student}.{name}"] / tokens for name in _EACH}
        scale = of["dense"] if of["dense"] > 0 else 1.0
        result[student] = {
            "kl": of["dense"],
            "kl_cached": of["cached"],
            "loss_error": (of["cached"] - of["dense"]) / scale,
            "loss_spread": math.sqrt(of["squared"]) / scale,
            "gradient_error": math.sqrt(of["gradient_error"] / (of["gradient"] or 1.0)),
        }
        if form.kind == "sampled":
            result[student]["loss_standard_error"] = math.sqrt(of["variance"] / tokens) / scale
    return result
