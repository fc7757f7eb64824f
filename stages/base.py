"""What assistant and student share: the model, the two tasks, the weighted objective, evaluation and saving."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mulcot.callbacks import DistillationLoss, Inspection, Judged
from mulcot.losses import Schedule
from mulcot.models import (
    DType,
    Lora,
    Passes,
    Quantise,
    RowSettings,
    check_fits,
    checkpoint_activations,
    compile_layers,
    find_model,
    is_sharded,
    load_model,
    load_processor,
    model_origin,
    row_form,
    save_model,
    shared_refusal,
    trained_parameters,
    trained_state,
)
from mulcot.predictions import FIT_PREDICTIONS, Prediction, write_predictions
from mulcot.ranges import Count, Labels, NonNegative, Side
from mulcot.rows import Layout, MicroBatch, QuestionBatch, RowEncoder, RowForm
from mulcot.types import DEFAULT_LABELS, TASKS, InputError, Task
from stages.all_ranks import of_all_ranks
from stages.answering import Answering, one_by_one, reasoning_of, scores_of
from stages.objective import Objective, StepLosses, checked_weights
from stages.optimizer import Gradients, Optimizer, adamw, has_loss_scale, with_schedule

_LOG: Final = logging.getLogger(__name__)
PredictKind = Literal["posts", "questions", "responses"]
TEST_PREDICTIONS: Final = "predictions-test.jsonl"
"""What the verb `test` gets, beside its `metrics-test.json`."""


class ModelStage(LightningModule):
    """A stage that trains or asks a model.

    Args:
        pretrained: the model: a folder, a finished stage, a checkpoint, or a name on the hub.
        stage_dir: where the stage keeps what it makes.
        title: what the report calls the trained model; runs of one title are the seeds of one system.
        labels: the label set.
        task_weights: weight of each task in the objective; a task of weight 0 is neither trained nor asked.
        lora: an adapter to train on the frozen model; null trains the weights themselves.
        freeze_vision: keeps the vision tower as it is.
        dtype: of the weights as loaded; bfloat16 is for a frozen base under an adapter.
        attention: transformers' attention implementation.
        image_size: width and height that every picture is squeezed to; the published code takes [280, 280]. null keeps
            its shape and leaves its size to the processor's pixel budget.
        optimizer: optimizer and schedule.
        max_new_tokens: where a rationale is cut off at the latest.
        trust_remote_code: runs code that comes with the model; only for one that you have read.
        quantise: keeps the language model's frozen weights under an adapter in `4bit` (QLoRA: NF4 with double
            quantisation) or `8bit`: less memory, not the same numbers. `pip install mulcot[quantised]`. The saved
            adapter belongs to the whole weights.
        activation_checkpointing: has layers compute their activations again in the backward pass instead of keeping
            them: the same numbers, less memory, 26% (all weights trained) to 45% (an adapter) more time on a CPU.
        compile_layers: has torch.compile make kernels of the language model's layers, a minute or more in every
            process. On a CPU a step takes 7% less time where all is trained, 16% more under an adapter; for a GPU.
    """

    kind = ""
    predict_kind: PredictKind = "questions"
    lambda_soft: float | Schedule = 0.0
    pad_end = False

    def __init__(
        self,
        pretrained: str,
        stage_dir: Path,
        title: str,
        labels: Labels = DEFAULT_LABELS,
        task_weights: dict[Task, NonNegative] | None = None,
        lora: Lora | None = None,
        freeze_vision: bool = False,
        dtype: DType = "float32",
        attention: str = "sdpa",
        optimizer: Optimizer | None = None,
        max_new_tokens: Count = 512,
        image_size: tuple[Side, Side] | None = None,
        trust_remote_code: bool = False,
        quantise: Quantise | None = None,
        activation_checkpointing: bool = False,
        compile_layers: bool = False,
    ) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.stage_dir = Path(stage_dir)
        self.title = title
        self.labels = tuple(labels)
        self.task_weights = checked_weights(task_weights)
        self.lora = lora
        self.freeze_vision = freeze_vision
        self.dtype_name = dtype
        self.attention = attention
        self.optimizer = optimizer or Optimizer()
        self.max_new_tokens = max_new_tokens
        self.image_size = image_size
        self.trust_remote_code = trust_remote_code
        self.quantise = quantise
        self.activation_checkpointing = activation_checkpointing
        self.compile_layers = compile_layers
        self.strict_loading = False  # a checkpoint holds what is trained, not the frozen base
        self.origin: dict[str, Any] = {}  # what a checkpoint keeps of the run: set by the command line
        self.inputs: dict[str, str] = {}  # the digests of what the stage reads, likewise
        self.predictions_name = FIT_PREDICTIONS
        self.model: nn.Module | None = None
        self.soft_label_fingerprint: dict[str, str] | None = None
        self.outcome: dict[str, Any] = {}
        self.test_metrics: dict[str, Any] = {}
        self.val_metrics: dict[str, Any] = {}
        self._told_layout = False
        self.assistant_encoder: RowEncoder | None = None
        self.head_rows: int | None = None
        self.projections = nn.ModuleDict()  # of losses on hidden states
        self.objective: Objective | None = None
        self._inspections: list[Inspection] = []
        self._step_losses = StepLosses()
        self._gradients: Gradients | None = None
        self._answering: Answering | None = None
        self._judged: list[Judged] = []
        self.judged: list[Judged] = []
        """The last evaluation: the answers of all ranks, in the order of the posts."""

    # -- what the data module asks for ------------------------------------------------------------------------------

    @cached_property
    def encoder(self) -> RowEncoder:
        """Encodes posts for this model."""
        processor = load_processor(self.pretrained, trust_remote_code=self.trust_remote_code)
        return RowEncoder(processor, self.labels, self.image_size, pad_end=self.pad_end)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks with a weight."""
        return tuple(task for task in TASKS if self.task_weights[task] > 0)

    def finished_posts(self) -> Collection[str]:
        """The posts that an interrupted prediction has asked about already."""
        return ()

    def row_forms(self, layout: Layout, row_tokens: int | None) -> tuple[RowForm, RowForm]:
        """In which form the model, and the assistant beside it, take rows when this one is wanted.

        Args:
            layout: see `Layout`.
            row_tokens: see `RowForm`.
        """
        assert self.model is not None
        mine = row_form(self.model, layout, row_tokens)
        if mine.layout != layout and not self._told_layout and self.trainer.is_global_zero:
            reason = shared_refusal(self.model)
            _LOG.warning("layout paired (data.init_args.layout) instead of shared, a step takes longer: %s", reason)
        self._told_layout = True
        return mine, RowForm()

    def input_models(self) -> list[str]:
        """The models that the stage reads, for the manifest."""
        return [self.pretrained]

    # -- the model --------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Loads the model, once."""
        if self.model is not None:
            return
        if self.lora is not None and find_model(self.pretrained).checkpoint is not None:
            raise InputError(
                f"{self.pretrained}: an adapter on a checkpoint could be loaded by mulcot alone: write it as a folder "
                "first (`mulcot export --model CHECKPOINT --out FOLDER`) and give that"
            )
        if self.quantise is not None and self.lora is None and not find_model(self.pretrained).adapted:
            raise InputError(
                f"model.init_args.quantise={self.quantise}: quantised weights cannot be trained; give an adapter "
                "to train on them (model.init_args.lora), or set model.init_args.quantise=null"
            )
        self.model = load_model(
            self.pretrained,
            dtype=self.dtype_name,
            attention=self.attention,
            lora=self.lora,
            freeze_vision=self.freeze_vision,
            trust_remote_code=self.trust_remote_code,
            rows=self.head_rows,
            quantise=self.quantise,
            compute=self.compute_dtype(self.quantise),
            processor=self.encoder.processor,
        )
        if self.activation_checkpointing:
            checkpoint_activations(self.model)
        if self.compile_layers:
            compile_layers(self.model)

    def compute_dtype(self, quantise: Quantise | None) -> DType:
        """In what quantised layers multiply: as autocast does."""
        return "bfloat16" if quantise is not None and self.trainer.precision == "bf16-mixed" else "float32"

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over what is trained."""
        optimizer = adamw(self.optimizer, self.parameters(), self.trainer.precision_plugin)
        return with_schedule(self.optimizer, optimizer, self.trainer.estimated_stepping_batches)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """See the base class; the norm that the check took serves again."""
        if gradient_clip_val and not has_loss_scale(self.trainer.precision_plugin):
            (self._gradients or Gradients(optimizer)).clip(gradient_clip_val, gradient_clip_algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # -- training ---------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Collects the loss terms and checks that they can be computed, before the first step."""
        assert self.model is not None
        if any(weight.dtype != torch.float32 for weight in trained_parameters(self.model).values()):
            raise InputError(
                "model.init_args.dtype=bfloat16 would train bf16 weights, whose updates round away: keep float32 (with "
                "--trainer.precision=bf16-mixed), or train an adapter (model.init_args.lora)"
            )
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        self.objective = self.make_objective([term for term in callbacks if isinstance(term, DistillationLoss)])
        self._inspections = [callback for callback in callbacks if isinstance(callback, Inspection)]
        self._steps = self.trainer.estimated_stepping_batches

    def make_objective(self, terms: Sequence[DistillationLoss]) -> Objective:
        """The objective of the run's loss terms, checked before the first step."""
        return Objective(terms, self.lambda_soft)

    def held_out_objective(self) -> Objective:
        """The same terms for posts that are not trained on, for which no soft labels are cached."""
        assert self.objective is not None
        return self.objective

    @property
    def progress(self) -> float:
        """How far the fit is, from 0 at its first optimizer step to 1 at its last."""
        return min(1.0, self.trainer.global_step / max(1.0, self._steps - 1))

    def training_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:
        """The weighted objective over a micro-batch's share of the optimizer step's response tokens."""
        assert self.model is not None
        assert self.objective is not None
        self.objective.begin_step(self.progress)
        watching = [inspection for inspection in self._inspections if inspection.is_due(self.trainer)]
        # Where weights are spread over processes, all make the same passes, whatever they have to learn from them.
        spread = is_sharded(self.model)
        total, passes = torch.zeros((), device=self.device) if spread else self._zero(), Passes()
        for task, rows in (batch.rows_of_step() if spread else batch.tasks).items():
            loss = self.objective.task_loss(
                self.model, task, rows, batch.step_tokens[task], inspect=bool(watching), passes=passes
            )
            self._step_losses.add_task(loss)
            for inspection in watching if task in batch.tasks else ():
                inspection.observe(self, loss)
            total = total + self.task_weights[task] * loss.total
        self._step_losses.add("loss/total", total)
        # DDP and Lightning divide by these; the weighting is by the step's tokens, which are counted over all of them.
        return total * (self.trainer.world_size * self.trainer.accumulate_grad_batches)

    def _zero(self) -> Tensor:
        """A zero with a graph to every trained weight, so that a rank without posts takes part in the reduction."""
        return sum(
            (parameter.sum() * 0.0 for parameter in self.parameters() if parameter.requires_grad), torch.zeros(())
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Checks the step's losses and gradients, and logs the losses of all ranks when it is time to log."""
        assert self.objective is not None
        step = self.trainer.global_step + 1
        is_right = self._step_losses.is_finite(self.device).bool()
        self._gradients = None if has_loss_scale(self.trainer.precision_plugin) else Gradients(optimizer)
        if self._gradients is not None:
            is_right = is_right & torch.isfinite(self._gradients.norm)
        # All ranks stop together: the gradients that they share are spoilt on each of them.
        if float(self.trainer.strategy.reduce(1.0 - is_right.float(), reduce_op="sum")) > 0:
            spoilt = self._gradients.wrong(self.named_parameters()) if self._gradients is not None else []
            self._step_losses.refuse(step, spoilt)
        sums = self._step_losses.take()
        if step % self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        # Every rank names every loss, a rank without posts too: the reduction needs equal shapes.
        names = ["loss/total"]
        for task in self.tasks:
            names += [f"loss/{task}/{name}" for name in (*self.objective.names(task), "total")]
        values = torch.stack([sums.get(name, torch.zeros((), device=self.device)).float() for name in names])
        values = self.trainer.strategy.reduce(values, reduce_op="sum")
        self.log_dict(dict(zip(names, values.unbind(), strict=True)) | self.objective.scheduled())
        self.log("loss", values[0], prog_bar=True, logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what is trained, and says what it was trained from."""
        checkpoint["state_dict"] = trained_state(self, int(checkpoint.get("global_step", 0)))
        checkpoint["mulcot"] = {
            **model_origin(self.pretrained, self.lora, self.freeze_vision),
            **{"labels": list(self.labels), "image_size": self.image_size and list(self.image_size)},
            "pad_end": self.pad_end,
            "val_metrics": self.val_metrics,
            **self.origin,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses what was trained on another model."""
        check_fits(checkpoint["state_dict"], trained_parameters(self))

    # -- evaluation -------------------------------------------------------------------------------------------------

    def validation_step(self, batch: QuestionBatch, batch_idx: int) -> None:
        """Classifies."""
        self._judge(batch, last=True)

    def test_step(self, batch: QuestionBatch, batch_idx: int) -> None:
        """Classifies, and writes rationales where reasoning is one of the tasks."""
        self._judge(batch, last=batch_idx + 1 == self.trainer.num_test_batches[0])

    def _judge(self, batch: QuestionBatch, *, last: bool) -> None:
        assert self.model is not None
        if self._answering is None:
            self._answering = Answering(self.model, self.encoder, self.max_new_tokens)
        answered = self._answering.add(batch) if batch.posts else []  # a rank may have none
        if last:
            answered += self._answering.finish()
            self._answering = None
        self._judged.extend(one_by_one(answered))

    def ask(self, batches: Iterable[QuestionBatch]) -> list[Judged]:
        """The answers of all ranks to further questions, each rank's share, in the order of the posts; in eval mode."""
        assert self.model is not None
        answering = Answering(self.model, self.encoder, self.max_new_tokens)
        answered = [done for batch in batches if batch.posts for done in answering.add(batch.to(self.device))]
        return self._of_all_ranks(one_by_one([*answered, *answering.finish()]))

    def on_validation_epoch_end(self) -> None:
        """Logs accuracy and F1; `val/selection` orders epochs by accuracy, then by F1."""
        judged = self._gather()
        scores = scores_of(judged, self.labels)
        if not scores["posts"]:
            raise InputError("no post of the validation split has a gold label: the best epoch cannot be chosen")
        # F1 moves by less than one post's worth of accuracy, so it decides between equal accuracies alone.
        f1 = "macro_f1" if self.trainer.datamodule.has_aspects("val") else "weighted_f1"  # type: ignore[attr-defined]
        selection = scores["accuracy"] + scores[f1] / (2 * max(1, scores["posts"]))
        logged = {f"val/{name}": float(scores[name]) for name in ("accuracy", "macro_f1", "weighted_f1")}
        self.log_dict(logged | {"val/selection": selection}, prog_bar=False)
        self.val_metrics = {"classification": scores}
        plateau = self.lr_schedulers()
        if isinstance(plateau, ReduceLROnPlateau) and not self.trainer.sanity_checking:
            plateau.step(scores["accuracy"])  # before the epoch is saved: Lightning would do it after that

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """See the base class; a plateau is looked at by `on_validation_epoch_end`."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_test_epoch_end(self) -> None:
        """Computes every metric over all ranks and writes the predictions."""
        judged = self._gather()
        scores = scores_of(judged, self.labels)
        reasoning = reasoning_of(judged, self.labels) if "reasoning" in self.tasks else None
        self.test_metrics = {"classification": scores, "reasoning": reasoning}
        if scores["posts"]:
            self.log_dict({f"test/{name}": float(scores[name]) for name in ("accuracy", "macro_f1", "weighted_f1")})
        if self.trainer.is_global_zero:
            made = [Prediction.of(post, answer) for _, answer, post, _ in judged]
            write_predictions(self.stage_dir / self.predictions_name, made)

    def _gather(self) -> list[Judged]:
        """This epoch's answers of all ranks, in the order of the posts."""
        self.judged, self._judged = self._of_all_ranks(self._judged), []
        return self.judged

    def _of_all_ranks(self, mine: list[Judged]) -> list[Judged]:
        return sorted((each for rank in of_all_ranks(self.trainer, mine) for each in rank), key=lambda each: each[0])

    def export(self, folder: Path) -> None:
        """Writes the model as an ordinary Hugging Face folder."""
        assert self.model is not None
        save_model(self.model, self.encoder.processor, RowSettings(self.labels, self.image_size, self.pad_end), folder)
