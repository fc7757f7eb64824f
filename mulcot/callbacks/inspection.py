"""What TensorBoard shows beside the losses: why the student learns what it learns."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng

from mulcot.callbacks.distillation import DistillationLoss
from mulcot.callbacks.inspection_layout import BUCKETS, STATISTIC_TAGS, bucket_name, layout
from mulcot.callbacks.inspection_picture import confusion_picture
from mulcot.callbacks.inspection_sums import LOSS_EDGES, PLACES, ResponsePlaces, TaskSummary, TaskSums
from mulcot.callbacks.inspection_text import rationale_table
from mulcot.callbacks.sampled_rationales import Judged, SampledRationales
from mulcot.callbacks.task_loss import TaskLoss
from mulcot.rows import Layout, RowEncoder, RowForm
from mulcot.types import InputError, Task


class _Objective(Protocol):
    terms: Sequence[DistillationLoss]


class InspectedStage(Protocol):
    """What inspection asks of the stage that it looks at."""

    encoder: RowEncoder
    """Encodes posts for its model."""
    tasks: Sequence[Task]
    """The tasks that it trains."""
    objective: _Objective
    """Holds the loss terms, from the start of the fit on."""
    judged: Sequence[Judged]
    """The last evaluation's answers of all ranks, in the order of the posts."""
    val_metrics: dict[str, Any]
    """Of the last validation, with the confusion matrix."""
    test_metrics: dict[str, Any]
    """Of the last test, with the confusion matrix."""
    max_new_tokens: int
    """Where a rationale is cut off at the latest."""

    def row_forms(self, layout: Layout, row_tokens: int | None) -> tuple[RowForm, RowForm]:
        """In which form its model takes rows, see `ModelStage`."""
        ...


class Inspection(Callback):
    """Looks at what the objective is made of, at the steps that are logged, and at what the student writes.

    Values are of the whole optimizer step, over all micro-batches and ranks. Scalars go to every logger; histograms,
    rationales, confusion matrices and the page of charts to TensorBoard alone. Nothing that is trained depends on it.

    Args:
        enabled: whether it looks at all.
        histogram_every: optimizer steps between histograms; 0 for none. They are made at the next step that is logged.
        rationales: so many validation posts for which the student writes rationales after each epoch, and test posts
            whose rationales are shown at the end; 0 for none.
        rationale_epochs: epochs between rationales.
    """

    def __init__(
        self, enabled: bool = True, histogram_every: int = 50, rationales: int = 4, rationale_epochs: int = 1
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("histogram_every", histogram_every, 0),
            ("rationales", rationales, 0),
            ("rationale_epochs", rationale_epochs, 1),
        ):
            if value < least:
                raise InputError(f"inspection.{name} is {value}; it must be {least} or more")
        self.enabled = enabled
        self.histogram_every = histogram_every
        self.rationales = rationales
        self.rationale_epochs = rationale_epochs
        self._sums: dict[Task, TaskSums] = {}
        self._places: ResponsePlaces | None = None
        self._terms: dict[Task, list[str]] = {}
        self._soft: set[str] = set()
        self._samples: SampledRationales | None = None
        self._last_histogram: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """When the last histograms were made: a resumed fit makes the next ones when the other would have."""
        return {"last_histogram": self._last_histogram}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it over."""
        self._last_histogram = state_dict["last_histogram"]

    # -- training ---------------------------------------------------------------------------------------------------

    def is_due(self, trainer: Trainer) -> bool:
        """Whether the optimizer step under way is looked at."""
        return self.enabled and (trainer.global_step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lays out the page of charts."""
        if not self.enabled:
            return
        stage = cast(InspectedStage, pl_module)
        terms = stage.objective.terms
        self._soft = {term.name for term in terms if term.is_soft}
        self._terms = {task: [term.name for term in terms if task in term.tasks] for task in stage.tasks}
        self._places = ResponsePlaces(stage.encoder)
        self._last_histogram = trainer.global_step if self._last_histogram is None else self._last_histogram
        page = layout(self._terms, self._soft)
        for writer in _writers(trainer):
            writer.add_custom_scalars(page)

    def observe(self, stage: LightningModule, loss: TaskLoss) -> None:
        """Takes in the objective of one task over one micro-batch; the stage calls it at steps that are due."""
        assert self._places is not None
        self._of_task(loss.task, stage.device).add(loss, self._places)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Adds up the ranks and logs what was seen of the step."""
        if not self.is_due(trainer):
            return
        # A rank without posts takes part too: the reduction needs equal shapes.
        sums = [self._of_task(task, pl_module.device) for task in self._terms]
        total = trainer.strategy.reduce(torch.cat([each.vector for each in sums]), reduce_op="sum")
        for each, part in zip(sums, total.split([len(each.vector) for each in sums]), strict=True):
            each.vector.copy_(part)
        summaries = {task: each.summary() for task, each in zip(self._terms, sums, strict=True)}
        self._sums = {}
        step = trainer.global_step
        if trainer.is_global_zero:
            # Past the stage's own `log`: with so many values its bookkeeping would cost more than all the rest.
            for logger in trainer.loggers:
                logger.log_metrics(dict(_scalars(summaries, self._soft)), step)
        last = self._last_histogram or 0
        if self.histogram_every and (step + 1) // self.histogram_every > last // self.histogram_every:
            self._last_histogram = step + 1
            for writer in _writers(trainer):
                for task, summary in summaries.items():
                    _write_histograms(writer, task, summary, step)

    def _of_task(self, task: Task, device: torch.device) -> TaskSums:
        if task not in self._sums:
            self._sums[task] = TaskSums(self._terms[task], device)
        return self._sums[task]

    # -- evaluation -------------------------------------------------------------------------------------------------

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the epoch's confusion matrix, and what the student writes by now."""
        if not self.enabled or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        stage, epoch = cast(InspectedStage, pl_module), trainer.current_epoch + 1
        _show_confusion(trainer, "val", f"Validation after epoch {epoch}", stage.val_metrics)
        if not self.rationales or "reasoning" not in stage.tasks or epoch % self.rationale_epochs:
            return
        if self._samples is None:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            form, _ = stage.row_forms(data.layout, None)
            self._samples = SampledRationales(data, stage.encoder, self.rationales, form)
        with isolate_rng(), trainer.precision_plugin.forward_context():
            written = self._samples.write(pl_module, stage.judged)
        _show_tables(trainer, "val", [rationale_table(*each) for each in written])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows what the best epoch says of the test split: the answers are there, nothing is asked twice."""
        if not self.enabled:
            return
        stage = cast(InspectedStage, pl_module)
        _show_confusion(trainer, "test", "Test, best epoch", stage.test_metrics)
        if "reasoning" in stage.tasks:
            shown = stage.judged[: self.rationales]
            tables = [rationale_table(post, answer, reference) for _, answer, post, reference in shown]
            _show_tables(trainer, "test", tables)


def _scalars(summaries: Mapping[Task, TaskSummary], soft: Collection[str]) -> Iterator[tuple[str, float]]:
    """Every scalar of a step by its tag."""
    for task, summary in summaries.items():
        for kind, norm in summary.gradients.items():
            if any((name in soft) == (kind == "soft") for name in summary.sections):
                yield f"gradient/{task}/{kind}", norm
        for name, value in summary.statistics.items():
            yield STATISTIC_TAGS[name].format(task), value
    if "reasoning" in summaries:
        yield from _of_rationales(summaries["reasoning"])


def _of_rationales(summary: TaskSummary) -> Iterator[tuple[str, float]]:
    """Where in a rationale the loss is: by section, and by position."""
    for name, means in summary.sections.items():
        for section, value in means.items():
            yield f"sections/{name}/{section}", value
    for name, places in summary.places.items():
        for bucket, (total, tokens) in enumerate(np.array(places).reshape(BUCKETS, -1, 2).sum(axis=1).tolist()):
            if tokens:
                yield f"positions/{name}/{bucket_name(bucket)}", total / tokens


def _writers(trainer: Trainer) -> list[Any]:
    """TensorBoard's writers, on the rank that has any."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _last_step(trainer: Trainer) -> int:
    """Where Lightning draws the metrics of an evaluation: it counts steps from 0."""
    return max(0, trainer.global_step - 1)


def _write_histograms(writer: Any, task: Task, summary: TaskSummary, step: int) -> None:
    for name, counts in summary.losses.items():
        _write_bins(writer, f"loss_log10/{task}/{name}", LOSS_EDGES, counts, step)
    if task == "reasoning":
        edges = [edge / PLACES for edge in range(PLACES + 1)]
        for name, places in summary.places.items():
            means = [total / tokens if tokens else 0.0 for total, tokens in places]
            _write_bins(writer, f"loss_by_position/{name}", edges, means, step)


def _write_bins(writer: Any, tag: str, edges: Sequence[float], heights: Sequence[float], step: int) -> None:
    """A histogram of given bins; the heights need not be counts."""
    used = [index for index, height in enumerate(heights) if height > 0]
    if not used:
        return
    middles = (np.array(edges[1:]) + np.array(edges[:-1])) / 2
    # TensorBoard cuts a histogram off at its least and greatest value.
    writer.add_histogram_raw(
        tag,
        min=edges[used[0]],
        max=edges[used[-1] + 1],
        num=float(sum(heights)),
        sum=float((middles * heights).sum()),
        sum_squares=float((middles**2 * heights).sum()),
        bucket_limits=list(edges),
        bucket_counts=[0.0, *heights],
        global_step=step,
    )


def _show_confusion(trainer: Trainer, split: str, title: str, metrics: Mapping[str, Any]) -> None:
    scores = metrics["classification"]
    if not scores["posts"]:
        return
    for writer in _writers(trainer):
        text = f"{title}: {scores['accuracy']:.0%} right of {scores['posts']} posts"
        picture = np.asarray(confusion_picture(scores["confusion"], text))
        writer.add_image(f"confusion/{split}", picture, _last_step(trainer), dataformats="HWC")


def _show_tables(trainer: Trainer, split: str, tables: Sequence[str]) -> None:
    for writer in _writers(trainer):
        for number, table in enumerate(tables, 1):
            writer.add_text(f"rationales_{split}/{number}", table, _last_step(trainer))
