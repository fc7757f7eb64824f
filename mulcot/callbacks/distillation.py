"""Loss terms as Lightning callbacks, named in the YAML: `losses: {name: {class_path, init_args}}`.

A term is one pure function from a chunk of student logits, the assistant's view of the same tokens and the targets to a
loss per token. The stage collects the terms, evaluates all of them from one projection of the response tokens, and does
the weighting: λ, the tasks' weights, and the mean over the response tokens of the whole optimizer step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mulcot.losses import Schedule, View, ViewKind, check_range, cross_entropy, is_constant, value_of
from mulcot.ranges import NonNegative, Positive
from mulcot.soft_labels import SoftLabelDescription
from mulcot.types import TASKS, InputError, Task


class DistillationLoss(Callback, ABC):
    """A term of the objective.

    Args:
        weight: its weight beside the other terms of its kind, a number or a schedule over the fit.
        tasks: the tasks that it takes part in.
    """

    views: ClassVar[tuple[ViewKind, ...]] = ()
    """The views of the assistant that the term can learn from, none of a hard term."""

    def __init__(self, weight: NonNegative | Schedule = 1.0, tasks: Sequence[Task] = TASKS) -> None:
        super().__init__()
        check_range(weight, "weight", low=0.0)
        unknown = [task for task in tasks if task not in TASKS]
        if unknown or not tasks:
            raise InputError(f"tasks of a loss: {list(tasks)}; there are {', '.join(TASKS)}")
        self.weight = weight
        self.tasks = tuple(tasks)
        self.name = ""
        self.progress = 0.0
        """How far the fit is, from 0 to 1; the stage sets it before each step."""

    @property
    def is_soft(self) -> bool:
        """Whether the term learns from the assistant's distribution: it takes λ, hard terms take 1 - λ."""
        return bool(self.views)

    @property
    def state_key(self) -> str:
        """The name is part of it, so that two terms of one class are told apart in a checkpoint."""
        return f"{type(self).__qualname__}[{self.name}]"

    @property
    def current_weight(self) -> float:
        """The weight at this step."""
        return value_of(self.weight, self.progress)

    def scheduled(self) -> dict[str, float]:
        """What is worth a curve, by name, as it is at this step: the weight where it changes."""
        return {} if is_constant(self.weight) else {"weight": self.current_weight}

    def check_view(self, kinds: Collection[ViewKind]) -> None:
        """Refuses, before the first step, an assistant beside the student that the term cannot learn from.

        Args:
            kinds: the views that it gives.
        """
        if not set(kinds) & set(self.views):
            aligned = "aligned" in kinds
            raise InputError(
                f"the loss {self.name} ({type(self).__name__}) learns from {' or '.join(self.views)} views of the "
                f"assistant, and this run gives {' and '.join(kinds)} ones: assistant and student "
                f"{'have different tokenizers' if aligned else 'share a tokenizer'} here, so take "
                f"{'the loss UniversalLogit, or models of one family' if aligned else 'a loss such as ForwardKL'}"
            )

    @abstractmethod
    def token_loss(self, logits: Tensor, targets: Tensor, view: View | None) -> Tensor:
        """The loss of every token.

        Args:
            logits: the student's, `[tokens, vocab]`.
            targets: the response tokens, `[tokens]`.
            view: the assistant's view of the same tokens; None for a hard term.

        Returns:
            `[tokens]` in fp32.
        """


class CrossEntropy(DistillationLoss):
    """Negative log-likelihood of the response tokens: the hard labels."""

    def token_loss(self, logits: Tensor, targets: Tensor, view: View | None) -> Tensor:
        """See the base class."""
        return cross_entropy(logits, targets)


class SoftLoss(DistillationLoss):
    """A term that compares the student's distribution with the assistant's, at a temperature.

    A loss of your own takes a subclass with `views` and `divergence`.

    Args:
        temperature: T, for assistant and student alike, a number or a schedule; a soft-label cache serves the T that
            it was built for and no schedule.
        scale_by_temperature: multiplies by T², so that soft gradients keep their size whatever T is (Hinton et al.,
            2015, https://arxiv.org/abs/1503.02531, section 2).
        weight: see the base class.
        tasks: see the base class.
    """

    views: ClassVar[tuple[ViewKind, ...]] = ("dense", "top_k")

    def __init__(
        self,
        temperature: Positive | Schedule = 2.0,
        scale_by_temperature: bool = True,
        weight: NonNegative | Schedule = 1.0,
        tasks: Sequence[Task] = TASKS,
    ) -> None:
        super().__init__(weight, tasks)
        check_range(temperature, "temperature", low=0.0, low_open=True)
        self.temperature = temperature
        self.scale_by_temperature = scale_by_temperature

    @property
    def current_temperature(self) -> float:
        """T at this step."""
        return value_of(self.temperature, self.progress)

    def scheduled(self) -> dict[str, float]:
        """See the base class; the temperature always."""
        return super().scheduled() | {"temperature": self.current_temperature}

    def check_cache(self, cache: SoftLabelDescription) -> None:
        """Refuses, before the first step, a cache that the term cannot learn from.

        Raises:
            InputError: the cache holds another form or temperature, or the term's temperature is a schedule.
        """
        if not is_constant(self.temperature):
            raise InputError(
                f"the loss {self.name} has a temperature schedule and a soft-label cache serves one T: let the "
                "assistant run beside the student (model.init_args.online_assistant=true), or give a number"
            )
        cache.check_serves(self.name, self.views, self.current_temperature)

    def token_loss(self, logits: Tensor, targets: Tensor, view: View | None) -> Tensor:
        """See the base class."""
        if view is None:
            raise InputError(
                f"the loss {self.name} learns from soft labels and there are none: give data.init_args.soft_labels, "
                f"or remove it with --losses.{self.name}=null"
            )
        temperature = self.current_temperature
        loss = self.divergence(logits, view, temperature)
        return loss * temperature**2 if self.scale_by_temperature else loss

    @abstractmethod
    def divergence(self, logits: Tensor, view: Any, temperature: float) -> Tensor:
        """How far the student is from the assistant at every token.

        Args:
            logits: the student's, `[tokens, vocab]`.
            view: the assistant's, of one of the kinds in `views`.
            temperature: T of this step.

        Returns:
            `[tokens]`, fp32 at least, without the factor T².
        """
