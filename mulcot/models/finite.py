"""Weights and gradients that are no numbers any more, which are neither saved nor asked."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mulcot.models.parts import trained_parameters
from mulcot.models.spread import whole, whole_on_first
from mulcot.types import InputError


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of tensors that are not all finite numbers; of ones that are spread, all processes have to ask at once.

    Args:
        tensors: by name; spread over processes or not.
    """
    return [name for name, tensor in tensors if not bool(torch.isfinite(whole(tensor.detach())).all())]


def refuse_diverged(model: nn.Module, step: int) -> None:
    """Refuses weights that an update made useless, though losses and gradients before it were right.

    Args:
        model: what is trained; where it is spread over processes, all of them have to ask at once.
        step: the optimizer steps that were taken, for the message.

    Raises:
        InputError: names the step and the first such weight.
    """
    weights = trained_parameters(model)
    # After a validation some of the weights of a spread model are whole; a norm takes the one kind or the other.
    spread = [weight.detach() for weight in weights.values() if isinstance(weight, DTensor)]
    others = [weight.detach() for weight in weights.values() if not isinstance(weight, DTensor)]
    norms = [whole(torch.nn.utils.get_total_norm(kind)) for kind in (spread, others) if kind]
    # Norms are quick and as a rule say enough; the squares of finite weights may be too large for them.
    if all(bool(torch.isfinite(norm)) for norm in norms):
        return
    spoilt = not_finite(weights.items())
    if spoilt:
        more = f" and {len(spoilt) - 1} more" if len(spoilt) > 1 else ""
        raise InputError(
            f"step {step}: the weight {spoilt[0]}{more} is not a finite number any more: training diverged. It is "
            "not saved, and what was saved before is kept. Lower model.init_args.optimizer.learning_rate or "
            "trainer.gradient_clip_val, or take precision 32-true, and go on (--allow_changed optimizer,precision)"
        )


def trained_state(model: nn.Module, step: int) -> dict[str, Tensor]:
    """What is trained, as a checkpoint keeps it; see `whole_on_first`.

    Args:
        model: see `refuse_diverged`.
        step: see `refuse_diverged`.

    Raises:
        InputError: see `refuse_diverged`.
    """
    refuse_diverged(model, step)
    return {name: whole_on_first(weight) for name, weight in trained_parameters(model).items()}
