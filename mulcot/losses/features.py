"""Losses between hidden states, and which layer learns from which.

As with the divergences, nothing here reduces over tokens or masks. Everything is computed in fp32 at least, under
autocast too, and the gradient flows to the student and to the projection alone.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from mulcot.losses.views import accumulable
from mulcot.types import InputError

_SHORTEST: Final = 1e-6
"""The length below which a hidden state has no direction: dividing by less would only blow its gradient up."""


def layer_map(student_layers: int, assistant_layers: int, count: int | None = None) -> tuple[tuple[int, int], ...]:
    """Which of the student's layers learn from which of the assistant's: those of the same relative depth.

    Of n pairs, the i-th joins the layers nearest to i/n of the depth of each, the deeper one of two equally near ones.
    So both sides rise from pair to pair and the last layer learns from the last, whichever model is the deeper one.
    Where the assistant's layers are a multiple of the student's, this is the uniform map of TinyBERT (Jiao et al.,
    arXiv 1909.10351, section 4.2).

    Args:
        student_layers: how many layers the student has.
        assistant_layers: how many the assistant has.
        count: how many pairs; None for one of every layer of the shallower model.

    Returns:
        (student layer, assistant layer), counted from 1, which makes them the indices of transformers' `hidden_states`
        (0 there is the embeddings; the last one has gone through the final norm).

    Raises:
        InputError: a model has no layers, or there are not as many layers as pairs.
    """
    for owner, layers in (("student", student_layers), ("assistant", assistant_layers)):
        if layers < 1:
            raise InputError(f"the {owner} has {layers} layers, so there are no hidden states to learn from")
    most = min(student_layers, assistant_layers)
    pairs = most if count is None else count
    if not 1 <= pairs <= most:
        raise InputError(
            f"{pairs} pairs of layers were asked for; it must be between 1 and {most}, as the student has "
            f"{student_layers} layers and the assistant {assistant_layers}"
        )
    return tuple(
        (_nearest(i, pairs, student_layers), _nearest(i, pairs, assistant_layers)) for i in range(1, pairs + 1)
    )


def hidden_mse(student: Tensor, assistant: Tensor, projection: nn.Linear | None = None) -> Tensor:
    """Mean squared error per channel: ‖W·s - a‖² / channels (FitNets: Romero et al., arXiv 1412.6550, equation 3).

    TinyBERT (arXiv 1909.10351, equation 8) has the same with a linear W. The mean over channels keeps a weight's
    meaning when models get wider; it does depend on how large the assistant's hidden states are.

    Args:
        student: hidden states of the tokens, `[tokens, student channels]`, of any floating dtype.
        assistant: those of the same tokens, `[tokens, assistant channels]`; they get no gradient.
        projection: W, from the student's channels to the assistant's; None when both have as many.

    Returns:
        `[tokens]`, fp32 at least; without tokens its sum is a 0 that can be back-propagated.

    Raises:
        InputError: the shapes do not fit.
    """
    mine, theirs = _same_channels(student, assistant, projection)
    return (mine - theirs).square().mean(dim=-1)


def hidden_cosine(student: Tensor, assistant: Tensor, projection: nn.Linear | None = None) -> Tensor:
    """One minus the cosine: 1 - cos(W·s, a) (DistilBERT: Sanh et al., arXiv 1910.01108, section 3).

    It is computed as half the squared distance of the two directions, which is the same but never negative and has
    correct digits at small angles, where 1 - cos has none.

    Args:
        student: see `hidden_mse`.
        assistant: see `hidden_mse`.
        projection: see `hidden_mse`.

    Returns:
        `[tokens]` between 0 and 2, see `hidden_mse`; a hidden state of length 0 counts as having no direction, at
        a distance of 1/2 from every other one.

    Raises:
        InputError: the shapes do not fit.
    """
    mine, theirs = (
        nn.functional.normalize(states, dim=-1, eps=_SHORTEST)
        for states in _same_channels(student, assistant, projection)
    )
    return (mine - theirs).square().sum(dim=-1) / 2


def _nearest(part: int, parts: int, layers: int) -> int:
    """`part` / `parts` of the layers, rounded half up, in whole numbers: exact, and rising as parts <= layers."""
    return (2 * part * layers + parts) // (2 * parts)


def _same_channels(student: Tensor, assistant: Tensor, projection: nn.Linear | None) -> tuple[Tensor, Tensor]:
    """The student's states as the assistant has them, and the assistant's without a graph, in fp32 at least."""
    if len(student) != len(assistant):
        raise InputError(f"hidden states of {len(student)} tokens cannot learn from those of {len(assistant)}")
    channels = (student.shape[-1], assistant.shape[-1])
    if projection is None and channels[0] != channels[1]:
        raise InputError(
            f"the student has {channels[0]} channels and the assistant {channels[1]}: a projection is needed"
        )
    if projection is not None and (projection.in_features, projection.out_features) != channels:
        raise InputError(
            f"the projection goes from {projection.in_features} channels to {projection.out_features}; it must go from "
            f"the student's {channels[0]} to the assistant's {channels[1]}"
        )
    mine = accumulable(student)
    if projection is not None:
        bias = None if projection.bias is None else projection.bias.to(mine.dtype)
        # Autocast would round the products to its own dtype, and the difference of near states would lose its digits.
        with torch.autocast(student.device.type, enabled=False):
            mine = nn.functional.linear(mine, projection.weight.to(mine.dtype), bias)
    return mine, accumulable(assistant.detach()).to(mine.dtype)
