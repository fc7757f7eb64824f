"""Terms on hidden states: the student's layers learn from the assistant's through a learnt projection."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol, cast

from lightning import LightningModule, Trainer
from torch import Tensor, nn

from mulcot.callbacks.distillation import DistillationLoss
from mulcot.losses import Schedule, View, ViewKind, hidden_cosine, hidden_mse, layer_map
from mulcot.ranges import Count, NonNegative
from mulcot.types import TASKS, InputError, Task

Layers = tuple[Tensor, ...]
"""Hidden states `[tokens, hidden]` behind the embedding and behind every layer."""


class FeaturePair(Protocol):
    """What a term on hidden states asks of the stage, before any weight is loaded."""

    projections: nn.ModuleDict
    """Where the term's own weights go, by its name: the stage trains and saves them."""

    def feature_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Layers and hidden size of the student, then of the assistant."""
        ...


class FeatureLoss(DistillationLoss):
    """A term on hidden states; it takes its weight alone, without λ.

    Args:
        layers: how many of the student's layers learn, spread over its depth, the last one among them; null for as
            many as the shallower model has.
        weight: see the base class.
        tasks: see the base class.
    """

    views: ClassVar[tuple[ViewKind, ...]] = ("hidden",)

    def __init__(
        self, layers: Count | None = 1, weight: NonNegative | Schedule = 1.0, tasks: Sequence[Task] = TASKS
    ) -> None:
        super().__init__(weight, tasks)
        if layers is not None and layers < 1:
            raise InputError(f"layers of a {type(self).__name__} is {layers}; it must be 1 or more, or null")
        self.layers = layers
        self.pairs: tuple[tuple[int, int], ...] = ()
        self._projections: nn.ModuleList | None = None

    @property
    def is_soft(self) -> bool:
        """It compares no distributions: λ does not apply."""
        return False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Registers a projection for each layer on the stage, before its model is made, so that it is trained."""
        if stage != "fit":
            return
        owner = cast(FeaturePair, pl_module)
        (mine, width), (theirs, their_width) = owner.feature_shapes()
        self.pairs = layer_map(mine, theirs, self.layers)
        self._projections = nn.ModuleList(nn.Linear(width, their_width, bias=False) for _ in self.pairs)
        owner.projections[self.name] = self._projections

    def hidden_loss(self, student: Layers, assistant: Layers) -> Tensor:
        """The mean over the mapped layers of the loss of every token, `[tokens]` in fp32.

        Args:
            student: its hidden states of the response tokens.
            assistant: likewise, of the same tokens.
        """
        assert self._projections is not None
        losses = [
            self.compare(student[mine], assistant[theirs], cast(nn.Linear, projection))
            for (mine, theirs), projection in zip(self.pairs, self._projections, strict=True)
        ]
        return sum(losses[1:], losses[0]) / len(losses)

    def token_loss(self, logits: Tensor, targets: Tensor, view: View | None) -> Tensor:
        """A term on hidden states sees no logits."""
        raise NotImplementedError("the stage asks a term on hidden states for its hidden_loss")

    @abstractmethod
    def compare(self, student: Tensor, assistant: Tensor, projection: nn.Linear) -> Tensor:
        """The loss of every token in one layer.

        Args:
            student: `[tokens, hidden]` of the student.
            assistant: `[tokens, hidden]` of the assistant.
            projection: from the student's size to the assistant's.
        """


class HiddenMSE(FeatureLoss):
    """Mean squared difference per dimension (FitNets: Romero et al., 2015, https://arxiv.org/abs/1412.6550)."""

    def compare(self, student: Tensor, assistant: Tensor, projection: nn.Linear) -> Tensor:
        """See the base class."""
        return hidden_mse(student, assistant, projection)


class HiddenCosine(FeatureLoss):
    """One minus the cosine (DistilBERT: Sanh et al., 2019, https://arxiv.org/abs/1910.01108)."""

    def compare(self, student: Tensor, assistant: Tensor, projection: nn.Linear) -> Tensor:
        """See the base class."""
        return hidden_cosine(student, assistant, projection)
