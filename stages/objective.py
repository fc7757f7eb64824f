"""The weighted objective of a fit: per task (1 - λ) · hard terms + λ · soft terms, over response tokens alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from mulcot.callbacks import DistillationLoss, FeatureLoss, ForwardKL, SoftLoss, TaskLoss
from mulcot.losses import Schedule, Term, View, ViewKind, chunked_loss, is_constant, value_of
from mulcot.models import Layers, Passes, head_parts, hidden_layers, hidden_states
from mulcot.rows import Inputs, RowBatch
from mulcot.soft_labels import SoftLabelDescription
from mulcot.types import TASKS, InputError, Task
from stages.online_assistant import OnlineAssistant, Seen
from stages.published import PublishedQuirks, bf16_kl, positions_everywhere

_NOTHING_SEEN: Final = Seen(None, ())
_REMEDY: Final = (
    "A lower learning rate (model.init_args.optimizer.learning_rate), trainer.gradient_clip_val or precision 32-true "
    "help when training diverges; otherwise look at these posts"
)


class Objective:
    """All terms of a fit with their weights.

    Args:
        terms: the loss callbacks of the run.
        lambda_soft: λ, a number or a schedule; hard terms take 1 - λ, soft ones λ, those on hidden states neither.
        assistant: the one that runs beside the student; None where a cache is read or nothing is learnt from it.
        quirks: what is computed as the published code does.
    """

    def __init__(
        self,
        terms: Sequence[DistillationLoss],
        lambda_soft: float | Schedule = 0.0,
        assistant: OnlineAssistant | None = None,
        quirks: PublishedQuirks | None = None,
    ) -> None:
        self.lambda_soft = lambda_soft
        self.assistant = assistant
        self.quirks = quirks or PublishedQuirks()
        self.progress = 0.0
        self.terms = [term for term in terms if self._ever_counts(term)]
        if not self.terms:
            raise InputError("no loss has a weight above 0: name one, e.g. --losses.ce.class_path=CrossEntropy")
        if self.quirks.no_temperature_scale:
            for term in self.soft_terms():
                term.scale_by_temperature = False

    def soft_terms(self) -> list[SoftLoss]:
        """The terms that compare distributions."""
        return [term for term in self.terms if isinstance(term, SoftLoss)]

    def learns_from_assistant(self) -> list[str]:
        """The names of the terms that need an assistant, or what it left."""
        return [term.name for term in self.terms if term.views]

    def check_view(self, kinds: Collection[ViewKind]) -> None:
        """Refuses terms that cannot learn from an assistant beside the student; see `DistillationLoss.check_view`."""
        for term in self.terms:
            if term.views:
                term.check_view(kinds)

    def check_cache(self, cache: SoftLabelDescription) -> None:
        """Refuses terms that cannot learn from a cache; see `SoftLoss.check_cache`."""
        for term in self.soft_terms():
            term.check_cache(cache)

    def coefficient(self, term: DistillationLoss) -> float:
        """What a term is multiplied by at this step."""
        if isinstance(term, FeatureLoss):
            return term.current_weight
        share = value_of(self.lambda_soft, self.progress)
        return (share if term.is_soft else 1 - share) * term.current_weight

    def begin_step(self, progress: float) -> None:
        """Sets every schedule to where the fit is, from 0 to 1."""
        self.progress = progress
        for term in self.terms:
            term.progress = progress

    def scheduled(self) -> dict[str, float]:
        """λ, every temperature, and the weights that change, by name, as they are at this step.

        Constants are among them: who compares runs wants to see what differs.
        """
        values = {}
        if self.learns_from_assistant():
            values["schedule/lambda"] = value_of(self.lambda_soft, self.progress)
        for term in self.terms:
            values |= {f"schedule/{name}/{term.name}": value for name, value in term.scheduled().items()}
        return values

    def names(self, task: Task) -> list[str]:
        """The terms of a task."""
        return [term.name for term in self.terms if task in term.tasks]

    def task_loss(
        self,
        model: nn.Module,
        task: Task,
        rows: RowBatch,
        step_tokens: int,
        *,
        inspect: bool = False,
        passes: Passes | None = None,
    ) -> TaskLoss:
        """The objective of a task over a micro-batch.

        Args:
            model: the student.
            task: which task.
            rows: its rows.
            step_tokens: response tokens of the whole optimizer step in this task.
            inspect: whether gradient norms and predictions are wanted too.
            passes: of the micro-batch, for its other tasks; None where this is its only one.
        """
        passes = passes or Passes()
        terms = [term for term in self.terms if task in term.tasks]
        features = [term for term in terms if isinstance(term, FeatureLoss)]
        mine = [layer.flatten(0, 1) for layer in passes.of(model, rows.inputs, self._run())]
        seen = self._see(terms, rows, passes)
        view = seen.view if rows.soft_labels is None else rows.soft_labels
        divisor = float(len(rows.targets) if self.quirks.batch_mean else step_tokens)
        on_logits = [self._head_term(term) for term in terms if not isinstance(term, FeatureLoss)]
        everywhere = [term for term in on_logits if term.is_soft and self.quirks.kl_everywhere]
        usual = [term for term in on_logits if term not in everywhere]
        head = chunked_loss(mine[-1][rows.positions], head_parts(model), rows.targets, view, usual, inspect=inspect)
        total = head.total / divisor
        values = {name: loss.sum() / divisor for name, loss in head.per_token.items()}
        if everywhere:
            extra, value = self._everywhere(model, mine[-1], rows, everywhere, step_tokens, passes)
            total, values = total + extra, values | value
        for term in features:
            of_tokens = term.hidden_loss(tuple(layer[rows.positions] for layer in mine), seen.layers)
            value_now = of_tokens.sum() / divisor
            total = total + self.coefficient(term) * value_now
            values[term.name] = value_now.detach()
        return TaskLoss(task, rows, view, total, values, head, divisor)

    def _run(self) -> Callable[[nn.Module, Inputs], Layers]:
        """How a model is run: for its last hidden states, or for those of all layers where a term of any task asks."""
        return hidden_layers if any(isinstance(term, FeatureLoss) for term in self.terms) else _last_layer

    def _head_term(self, term: DistillationLoss) -> Term:
        loss = term.token_loss
        if self.quirks.kl_in_bf16 and isinstance(term, ForwardKL):
            loss = partial(_published_kl, term)
        return Term(term.name, loss, self.coefficient(term), term.is_soft)

    def _see(self, terms: Sequence[DistillationLoss], rows: RowBatch, passes: Passes) -> Seen:
        """What the assistant beside the student sees of these rows, where a term wants it."""
        if self.assistant is None or not any(term.views for term in terms):
            return _NOTHING_SEEN
        return self.assistant.see(rows, self._assistant_layers(self.assistant, rows, passes))

    @torch.no_grad()
    def _assistant_layers(self, assistant: OnlineAssistant, rows: RowBatch, passes: Passes) -> Layers:
        return passes.of(assistant.model, assistant.inputs(rows), self._run())

    def _everywhere(
        self,
        model: nn.Module,
        hidden: Tensor,
        rows: RowBatch,
        terms: Sequence[Term],
        step_tokens: int,
        passes: Passes,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The soft terms over every position, as the published code has them."""
        assert self.assistant is not None
        positions = positions_everywhere(rows)
        view = self.assistant.see_positions(rows, positions, self._assistant_layers(self.assistant, rows, passes))
        result = chunked_loss(
            hidden[positions], head_parts(model), rows.inputs["input_ids"].flatten()[positions], view, terms
        )
        divisor = float(len(positions) if self.quirks.batch_mean else step_tokens)
        return result.total / divisor, {name: loss.sum() / divisor for name, loss in result.per_token.items()}

    def _ever_counts(self, term: DistillationLoss) -> bool:
        """Whether a term has any weight at any time of the fit."""
        return not (is_constant(term.weight) and is_constant(self.lambda_soft)) or self.coefficient(term) > 0


def _last_layer(model: nn.Module, inputs: Inputs) -> Layers:
    return (hidden_states(model, inputs),)


def _published_kl(term: ForwardKL, logits: Tensor, targets: Tensor, view: View | None) -> Tensor:
    """The term with its KL in bfloat16."""
    assert view is not None
    temperature = term.current_temperature
    loss = bf16_kl(logits, view, temperature)
    return loss * temperature**2 if term.scale_by_temperature else loss


def checked_weights(given: dict[Task, float] | None) -> dict[Task, float]:
    """The weight of every task.

    Args:
        given: those that were named; the others are 1.

    Raises:
        InputError: one is below 0, or none above.
    """
    weights: dict[Task, float] = dict.fromkeys(TASKS, 1.0) | (given or {})
    if min(weights.values()) < 0 or max(weights.values()) == 0:
        raise InputError(f"model.init_args.task_weights is {weights}; weights are 0 or more and one is above 0")
    return weights


class StepLosses:
    """The losses of one optimizer step, summed over its micro-batches, and the check that they are numbers."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._seen: list[tuple[TaskLoss, Tensor]] = []

    def add(self, name: str, value: Tensor) -> None:
        """Adds a micro-batch's share to the step's value of a loss."""
        value = value.detach()
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def add_task(self, loss: TaskLoss) -> None:
        """Adds every term of a task."""
        for name, value in loss.values.items():
            self.add(f"loss/{loss.task}/{name}", value)
        self.add(f"loss/{loss.task}/total", loss.total)
        finite = torch.isfinite(loss.total.detach())
        self._seen.append((loss, finite))

    def take(self) -> dict[str, Tensor]:
        """The step's values; the next step starts anew."""
        sums, self._sums, self._seen = self._sums, {}, []
        return sums

    def is_finite(self, device: torch.device) -> Tensor:
        """Whether every loss of the step so far is a number, as a scalar on `device`."""
        return torch.stack([finite for _, finite in self._seen]).all() if self._seen else torch.ones((), device=device)

    def refuse(self, step: int, spoilt: Sequence[str]) -> None:
        """Says what is no number.

        Args:
            step: the optimizer step, for the message.
            spoilt: weights whose gradients are none.

        Raises:
            InputError: names step, posts, and task and terms or a weight.
        """
        for loss, finite in self._seen:
            if not bool(finite):
                raise InputError(_describe(loss, step))
        if spoilt:
            posts = dict.fromkeys(row.post.id for loss, _ in self._seen for row in loss.rows.rows)
            others = f" and {len(spoilt) - 1} more" if len(spoilt) > 1 else ""
            raise InputError(
                f"step {step}: the gradient of {spoilt[0]}{others} is not a finite number, though every loss is, on "
                f"the posts {_some(list(posts))}; the step was not taken. {_REMEDY}"
            )
        raise InputError(f"step {step}: a loss on another process is not a finite number; the step was not taken")


def _describe(loss: TaskLoss, step: int) -> str:
    """Which terms are no numbers, and whose tokens these are."""
    terms, posts = [], []
    owners = [row.post.id for row in loss.rows.rows for _ in row.response_ids]
    per_token = loss.head.per_token
    for name, value in loss.values.items():
        if bool(torch.isfinite(value)):
            continue
        terms.append(name)
        if name in per_token and len(per_token[name]) == len(owners):
            bad = (~torch.isfinite(per_token[name])).nonzero().flatten().tolist()
            posts += [owners[index] for index in bad]
    posts = list(dict.fromkeys(posts)) or list(dict.fromkeys(owners))
    return (
        f"step {step}: the loss {', '.join(terms) or 'total'} of the task {loss.task} is not a finite number, on the "
        f"posts {_some(posts)}; the step was not taken. {_REMEDY}"
    )


def _some(posts: Sequence[str]) -> str:
    return ", ".join(posts[:5]) + (f" and {len(posts) - 5} more" if len(posts) > 5 else "")
