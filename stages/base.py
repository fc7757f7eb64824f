"""What assistant and student share: the model, the two tasks, the weighted objective, evaluation and saving."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from mulcot.callbacks import DistillationLoss, Inspection
from mulcot.files import write_atomic
from mulcot.generation import RationaleRefusedError, decode_replies, label_probabilities, parse_rationale
from mulcot.losses import Schedule
from mulcot.metrics import ClassificationReport, ReasoningReport
from mulcot.models import (
    DType,
    Lora,
    RowSettings,
    find_model,
    load_model,
    load_processor,
    save_model,
    trained_state,
)
from mulcot.rows import MicroBatch, QuestionBatch, RowEncoder
from mulcot.types import DEFAULT_LABELS, TASKS, Answer, InputError, RationaleRecord, Task
from stages.objective import Objective, StepLosses

PredictKind = Literal["posts", "questions", "responses"]
FIT_PREDICTIONS: Final = "predictions.jsonl"
"""What a fit's best epoch answers to the test posts, beside its `metrics.json`."""
TEST_PREDICTIONS: Final = "predictions-test.jsonl"
"""What the verb `test` gets, beside its `metrics-test.json`."""
Judged = tuple[int, Answer, str | None, RationaleRecord | None]
"""Where the post stands in its split, the answer, the gold label, the reference."""


@dataclass
class Optimizer:
    """AdamW and its learning rate over time."""

    learning_rate: float = 3e-4
    """The peak; the published code uses 3e-4."""
    weight_decay: float = 0.01
    """Decoupled decay of matrices; vectors (norms, biases) are not decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments."""
    schedule: Literal["constant", "cosine", "plateau"] = "constant"
    """`cosine` falls to 0 at the last step, `plateau` reduces when validation stops improving."""
    warmup: float = 0.0
    """Share of all optimizer steps in which a cosine schedule rises to the peak."""
    plateau_factor: float = 0.5
    """What `plateau` multiplies the learning rate by."""
    plateau_patience: int = 2
    """Epochs without improvement that `plateau` waits."""


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
        labels: Sequence[str] = DEFAULT_LABELS,
        task_weights: dict[Task, float] | None = None,
        lora: Lora | None = None,
        freeze_vision: bool = False,
        dtype: DType = "float32",
        attention: str = "sdpa",
        optimizer: Optimizer | None = None,
        max_new_tokens: int = 512,
        image_size: tuple[int, int] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.stage_dir = Path(stage_dir)
        self.title = title
        self.labels = tuple(labels)
        self.task_weights = _checked_weights(task_weights)
        self.lora = lora
        self.freeze_vision = freeze_vision
        self.dtype_name = dtype
        self.attention = attention
        self.optimizer = optimizer or Optimizer()
        self.max_new_tokens = max_new_tokens
        self.image_size = image_size
        self.trust_remote_code = trust_remote_code
        self.strict_loading = False  # a checkpoint holds what is trained, not the frozen base
        self.command_key = ""  # the command line's fingerprint, set by the command line
        self.predictions_name = FIT_PREDICTIONS
        self.model: nn.Module | None = None
        self.soft_label_fingerprint: dict[str, str] | None = None
        self.outcome: dict[str, Any] = {}
        self.test_metrics: dict[str, Any] = {}
        self.val_metrics: dict[str, Any] = {}
        self.assistant_encoder: RowEncoder | None = None
        self.head_rows: int | None = None
        self.projections = nn.ModuleDict()  # of losses on hidden states
        self.objective: Objective | None = None
        self._inspections: list[Inspection] = []
        self._step_losses = StepLosses()
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
        self.model = load_model(
            self.pretrained,
            dtype=self.dtype_name,
            attention=self.attention,
            lora=self.lora,
            freeze_vision=self.freeze_vision,
            trust_remote_code=self.trust_remote_code,
            rows=self.head_rows,
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over what is trained."""
        settings = self.optimizer
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        # Lightning takes a fused step for one that unscales gradients by itself and refuses to clip under autocast.
        fused = not str(self.trainer.precision).endswith("mixed")
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=fused)
        if settings.schedule == "cosine":
            steps = int(self.trainer.estimated_stepping_batches)
            scheduler = get_cosine_schedule_with_warmup(optimizer, int(settings.warmup * steps), steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        if settings.schedule == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, mode="max", factor=settings.plateau_factor, patience=settings.plateau_patience
            )
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/accuracy"}}
        return optimizer

    # -- training ---------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Collects the loss terms and checks that they can be computed, before the first step."""
        assert self.model is not None
        if any(weight.dtype != torch.float32 for weight in trained_state(self.model).values()):
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
        total = self._zero()
        for task, rows in batch.tasks.items():
            loss = self.objective.task_loss(self.model, task, rows, batch.step_tokens[task], inspect=bool(watching))
            self._step_losses.add_task(loss)
            for inspection in watching:
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
        """Checks the step's losses, and logs them over all micro-batches and ranks when it is time to log."""
        assert self.objective is not None
        step = self.trainer.global_step + 1
        # All ranks stop together: the gradients that they share are spoilt on each of them.
        wrong = 1.0 - self._step_losses.is_finite(self.device).float()
        if float(self.trainer.strategy.reduce(wrong, reduce_op="sum")) > 0:
            self._step_losses.refuse(step)
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
        assert self.model is not None
        trained, source = trained_state(self.model), find_model(self.pretrained)
        checkpoint["state_dict"] = {f"model.{name}": value for name, value in trained.items()} | {
            f"projections.{name}": value for name, value in trained_state(self.projections).items()
        }
        checkpoint["mulcot"] = {
            "pretrained": source.name if source.checkpoint is None else str(source.checkpoint),  # from any folder
            "lora": asdict(self.lora) if self.lora else None,
            "freeze_vision": self.freeze_vision,
            "labels": list(self.labels),
            "image_size": list(self.image_size) if self.image_size else None,
            "pad_end": self.pad_end,
            "command_key": self.command_key,
            "val_metrics": self.val_metrics,
        }

    # -- evaluation -------------------------------------------------------------------------------------------------

    def validation_step(self, batch: QuestionBatch, batch_idx: int) -> None:
        """Classifies."""
        self._judge(batch)

    def test_step(self, batch: QuestionBatch, batch_idx: int) -> None:
        """Classifies, and writes rationales where reasoning is one of the tasks."""
        self._judge(batch)

    def _judge(self, batch: QuestionBatch) -> None:
        assert self.model is not None
        if not batch.posts:  # of a rank for which there are none
            return
        answers = answer_questions(self.model, batch, self.encoder, self.max_new_tokens)
        golds = [post.label for post in batch.posts]
        self._judged.extend(zip(batch.numbers, answers, golds, batch.references, strict=True))

    def on_validation_epoch_end(self) -> None:
        """Logs accuracy and F1; `val/selection` orders epochs by accuracy, then by F1."""
        judged = self._gather()
        scores = self._classification(judged)
        if not scores["posts"]:
            raise InputError("no post of the validation split has a gold label: the best epoch cannot be chosen")
        # F1 moves by less than one post's worth of accuracy, so it decides between equal accuracies alone.
        f1 = "macro_f1" if self.trainer.datamodule.has_aspects("val") else "weighted_f1"  # type: ignore[attr-defined]
        selection = scores["accuracy"] + scores[f1] / (2 * max(1, scores["posts"]))
        logged = {f"val/{name}": float(scores[name]) for name in ("accuracy", "macro_f1", "weighted_f1")}
        self.log_dict(logged | {"val/selection": selection}, prog_bar=False)
        self.val_metrics = {"classification": scores}

    def on_test_epoch_end(self) -> None:
        """Computes every metric over all ranks and writes the predictions."""
        judged = self._gather()
        scores = self._classification(judged)
        reasoning = None
        if "reasoning" in self.tasks:
            report = ReasoningReport(self.labels)
            _, answers, golds, references = zip(*judged, strict=True)
            report.update(answers, references, golds)
            reasoning = report.compute()
        self.test_metrics = {"classification": scores, "reasoning": reasoning}
        if scores["posts"]:
            self.log_dict({f"test/{name}": float(scores[name]) for name in ("accuracy", "macro_f1", "weighted_f1")})
        if self.trainer.is_global_zero:
            lines = [json.dumps(asdict(answer) | {"gold": gold}, ensure_ascii=False) for _, answer, gold, _ in judged]
            write_atomic(self.stage_dir / self.predictions_name, "".join(line + "\n" for line in lines))

    def _classification(self, judged: Sequence[Judged]) -> dict[str, Any]:
        report = ClassificationReport(self.labels)
        known = [(answer.label, gold) for _, answer, gold, _ in judged if gold is not None]
        report.update([label for label, _ in known], [gold for _, gold in known])
        return report.compute()

    def _gather(self) -> list[Judged]:
        """This epoch's answers of all ranks, in the order of the posts."""
        mine, self._judged = self._judged, []
        ranks: list[list[Judged]] = [mine]
        if self.trainer.world_size > 1:
            ranks = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(ranks, mine)
        self.judged = sorted((judged for rank in ranks for judged in rank), key=lambda judged: judged[0])
        return self.judged

    def export(self, folder: Path) -> None:
        """Writes the model as an ordinary Hugging Face folder."""
        assert self.model is not None
        save_model(self.model, self.encoder.processor, RowSettings(self.labels, self.image_size, self.pad_end), folder)


def answer_questions(model: nn.Module, batch: QuestionBatch, encoder: RowEncoder, max_new_tokens: int) -> list[Answer]:
    """Answers a batch: label probabilities from its candidates, rationales from its prompts where it has any.

    Args:
        model: in eval mode.
        batch: with candidates.
        encoder: the model's.
        max_new_tokens: where a rationale is cut off at the latest.
    """
    labels = encoder.labels
    if batch.candidates is None:
        raise ValueError("a batch without candidates cannot be classified")
    table = label_probabilities(model, batch.candidates, len(labels)).tolist()
    replies = [""] * len(batch.posts)
    if batch.prompts is not None:
        replies = decode_replies(model, batch.prompts, encoder, max_new_tokens)
    return [
        _make_answer(post.id, dict(zip(labels, row, strict=True)), reply, labels)
        for post, row, reply in zip(batch.posts, table, replies, strict=True)
    ]


def _make_answer(post_id: str, probabilities: dict[str, float], reply: str, labels: Sequence[str]) -> Answer:
    label = max(probabilities, key=probabilities.__getitem__)
    try:
        rationale, refusal = (parse_rationale(reply, labels), "") if reply else (None, "no reply")
    except RationaleRefusedError as refused:
        rationale, refusal = None, str(refused)
    return Answer(post_id, label, probabilities, rationale, reply, refusal)


def _checked_weights(given: dict[Task, float] | None) -> dict[Task, float]:
    weights: dict[Task, float] = dict.fromkeys(TASKS, 1.0) | (given or {})
    if min(weights.values()) < 0 or max(weights.values()) == 0:
        raise InputError(f"model.init_args.task_weights is {weights}; weights are 0 or more and one is above 0")
    return weights
