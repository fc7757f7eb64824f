"""Loss terms as Lightning callbacks, named in the YAML: `losses: {name: {class_path, init_args}}`.

A term is one pure function from a chunk of student logits, the assistant's view of the same tokens and the targets to a
loss per token. The stage collects the terms, evaluates them on the response tokens, and does the weighting: λ, the
tasks' weights, and the mean over the response tokens of the whole optimizer step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mulcot.losses import TopK, cross_entropy, forward_kl
from mulcot.types import TASKS, InputError, Task

View = Literal["none", "top_k"]


class DistillationLoss(Callback, ABC):
    """A term of the objective.

    Args:
        weight: its weight beside the other terms of its kind.
        tasks: the tasks that it takes part in.
    """

    view: ClassVar[View] = "none"
    """What a term needs to see of the assistant; `none` makes it a hard term, anything else a soft one."""

    def __init__(self, weight: float = 1.0, tasks: Sequence[Task] = TASKS) -> None:
        super().__init__()
        if weight < 0:
            raise InputError(f"the weight of a loss is {weight}; it must be 0 or more")
        self.weight = weight
        self.tasks = tuple(tasks)
        self.name = ""

    @property
    def is_soft(self) -> bool:
        """Whether the term learns from the assistant: it takes λ, hard terms take 1 - λ."""
        return self.view != "none"

    @property
    def state_key(self) -> str:
        """The name is part of it, so that two terms of one class are told apart in a checkpoint."""
        return f"{type(self).__qualname__}[{self.name}]"

    @abstractmethod
    def token_loss(self, logits: Tensor, targets: Tensor, view: TopK | None) -> Tensor:
        """The loss of every token.

        Args:
            logits: the student's, `[tokens, vocab]`.
            targets: the response tokens, `[tokens]`.
            view: the assistant's view, `[tokens, k]`; None for a hard term.

        Returns:
            `[tokens]` in fp32.
        """


class CrossEntropy(DistillationLoss):
    """Negative log-likelihood of the response tokens: the hard labels."""

    def token_loss(self, logits: Tensor, targets: Tensor, view: TopK | None) -> Tensor:
        """See the base class."""
        return cross_entropy(logits, targets)


class ForwardKL(DistillationLoss):
    """T² · KL(p_assistant^T || p_student^T) (Hinton et al., 2015, https://arxiv.org/abs/1503.02531).

    Args:
        temperature: T, for assistant and student alike; a soft-label cache must have been built for it.
        scale_by_temperature: multiplies by T², so that soft gradients keep their size whatever T is.
        weight: see the base class.
        tasks: see the base class.
    """

    view = "top_k"

    def __init__(
        self,
        temperature: float = 2.0,
        scale_by_temperature: bool = True,
        weight: float = 1.0,
        tasks: Sequence[Task] = TASKS,
    ) -> None:
        super().__init__(weight, tasks)
        if temperature <= 0:
            raise InputError(f"the temperature of a loss is {temperature}; it must be above 0")
        self.temperature = temperature
        self.scale = temperature**2 if scale_by_temperature else 1.0

    def token_loss(self, logits: Tensor, targets: Tensor, view: TopK | None) -> Tensor:
        """See the base class."""
        if view is None:
            raise InputError(
                f"the loss {self.name} learns from soft labels and there are none: give data.init_args.soft_labels, "
                f"or remove it with --losses.{self.name}=null"
            )
        return self.scale * forward_kl(logits, view, self.temperature)
