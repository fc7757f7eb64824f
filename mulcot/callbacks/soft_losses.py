"""One callback for each divergence between the student's distribution and the assistant's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from mulcot.callbacks.distillation import SoftLoss
from mulcot.losses import (
    Aligned,
    Dense,
    Sampled,
    Schedule,
    TopK,
    ViewKind,
    forward_kl,
    jsd,
    logit_mse,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
    total_variation,
    uld,
)
from mulcot.ranges import Count, NonNegative, Positive, Share, ShareBelowOne
from mulcot.types import TASKS, InputError, Task


class ForwardKL(SoftLoss):
    """T² · KL(p_assistant^T ‖ p_student^T) (Hinton et al., 2015, https://arxiv.org/abs/1503.02531).

    From a top-k cache it is taken over the k ids and the tail's mass; from a sampled one it is the unbiased estimator
    of "Sparse Logit Sampling" (Anshumann et al., ACL 2025, https://arxiv.org/abs/2503.16870).
    """

    views: ClassVar[tuple[ViewKind, ...]] = ("dense", "top_k", "sampled")

    def divergence(self, logits: Tensor, view: TopK | Dense | Sampled, temperature: float) -> Tensor:
        """See the base class."""
        return forward_kl(logits, view, temperature)


class ReverseKL(SoftLoss):
    """T² · KL(p_student^T ‖ p_assistant^T): seeks the assistant's modes (Gu et al., 2024, arXiv 2306.08543)."""

    def divergence(self, logits: Tensor, view: TopK | Dense, temperature: float) -> Tensor:
        """See the base class."""
        return reverse_kl(logits, view, temperature)


class GeneralizedJSD(SoftLoss):
    """Generalised Jensen-Shannon divergence (Agarwal et al., 2024, https://arxiv.org/abs/2306.13649).

    Args:
        beta: from 0 (like forward KL) to 1 (like reverse KL), both excluded.
        temperature: see the base class.
        scale_by_temperature: see the base class.
        weight: see the base class.
        tasks: see the base class.
    """

    def __init__(
        self,
        beta: Share = 0.5,
        temperature: Positive | Schedule = 2.0,
        scale_by_temperature: bool = True,
        weight: NonNegative | Schedule = 1.0,
        tasks: Sequence[Task] = TASKS,
    ) -> None:
        super().__init__(temperature, scale_by_temperature, weight, tasks)
        if not 0 < beta < 1:
            raise InputError(f"beta of a GeneralizedJSD is {beta}; it must be between 0 and 1, both excluded")
        self.beta = beta

    def divergence(self, logits: Tensor, view: TopK | Dense, temperature: float) -> Tensor:
        """See the base class."""
        return jsd(logits, view, temperature, beta=self.beta)


class _Skewed(SoftLoss):
    """What the two skewed divergences share: the share alpha of the other distribution in the mixture."""

    def __init__(
        self,
        alpha: ShareBelowOne = 0.1,
        temperature: Positive | Schedule = 2.0,
        scale_by_temperature: bool = True,
        weight: NonNegative | Schedule = 1.0,
        tasks: Sequence[Task] = TASKS,
    ) -> None:
        super().__init__(temperature, scale_by_temperature, weight, tasks)
        if not 0 <= alpha < 1:
            raise InputError(f"alpha of a {type(self).__name__} is {alpha}; it must be at least 0 and below 1")
        self.alpha = alpha


class SkewedKL(_Skewed):
    """KL(p ‖ α p + (1 - α) q) of assistant p and student q (DistiLLM: Ko et al., 2024, arXiv 2402.03898).

    Args:
        alpha: the assistant's share of the mixture; 0 is forward KL.
        temperature: see the base class.
        scale_by_temperature: see the base class.
        weight: see the base class.
        tasks: see the base class.
    """

    def divergence(self, logits: Tensor, view: TopK | Dense, temperature: float) -> Tensor:
        """See the base class."""
        return skewed_kl(logits, view, temperature, alpha=self.alpha)


class SkewedReverseKL(_Skewed):
    """KL(q ‖ α q + (1 - α) p) of assistant p and student q (DistiLLM: Ko et al., 2024, arXiv 2402.03898).

    Args:
        alpha: the student's share of the mixture; 0 is reverse KL.
        temperature: see the base class.
        scale_by_temperature: see the base class.
        weight: see the base class.
        tasks: see the base class.
    """

    def divergence(self, logits: Tensor, view: TopK | Dense, temperature: float) -> Tensor:
        """See the base class."""
        return skewed_reverse_kl(logits, view, temperature, alpha=self.alpha)


class TotalVariation(SoftLoss):
    """½ Σ |p - q|, between 0 and 1 before the factor T² (Wen et al., 2023, https://arxiv.org/abs/2307.15190)."""

    def divergence(self, logits: Tensor, view: TopK | Dense, temperature: float) -> Tensor:
        """See the base class."""
        return total_variation(logits, view, temperature)


class LogitMSE(SoftLoss):
    """Mean squared difference of centred logits at T (Kim et al., 2021, https://arxiv.org/abs/2105.08919)."""

    def divergence(self, logits: Tensor, view: TopK | Dense, temperature: float) -> Tensor:
        """See the base class."""
        return logit_mse(logits, view, temperature)


class UniversalLogit(SoftLoss):
    """Sorted probabilities compared across tokenizers (ULD: Boizard et al., 2024, https://arxiv.org/abs/2402.12030).

    For an assistant with another tokenizer, which runs beside the student. Tokens are compared where both models
    continue the same text; the others cost nothing.

    Args:
        top: compares so many of the likeliest ids one by one and the mass of all others as one number, which is a
            sixth of the work of sorting whole vocabularies; null sorts all.
        temperature: see the base class.
        scale_by_temperature: see the base class; sorted probabilities have no second order in T to undo.
        weight: see the base class.
        tasks: see the base class.
    """

    views: ClassVar[tuple[ViewKind, ...]] = ("aligned",)

    def __init__(
        self,
        top: Count | None = 1024,
        temperature: Positive | Schedule = 1.0,
        scale_by_temperature: bool = False,
        weight: NonNegative | Schedule = 1.0,
        tasks: Sequence[Task] = TASKS,
    ) -> None:
        super().__init__(temperature, scale_by_temperature, weight, tasks)
        if top is not None and top < 1:
            raise InputError(f"top of a UniversalLogit is {top}; it must be 1 or more, or null")
        self.top = top

    def divergence(self, logits: Tensor, view: Aligned, temperature: float) -> Tensor:
        """See the base class."""
        return uld(logits, view, temperature, self.top)
