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

from mulcot.callbacks import DistillationLoss
from mulcot.files import write_atomic
from mulcot.generation import RationaleRefusedError, decode_replies, label_probabilities, parse_rationale
from mulcot.metrics import ClassificationReport, ReasoningReport
from mulcot.models import (
    DType,
    Lora,
    find_model,
    head,
    hidden_states,
    load_model,
    load_processor,
    save_model,
    trained_state,
)
from mulcot.rows import MicroBatch, QuestionBatch, RowBatch, RowEncoder
from mulcot.types import DEFAULT_LABELS, TASKS, Answer, InputError, RationaleRecord, Task

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
    lambda_soft: float = 0.0

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
        self._terms: list[DistillationLoss] = []
        self._step_sums: dict[str, Tensor] = {}
        self._judged: list[Judged] = []

    # -- what the data module asks for ------------------------------------------------------------------------------

    @cached_property
    def encoder(self) -> RowEncoder:
        """Encodes posts for this model."""
        processor = load_processor(self.pretrained, trust_remote_code=self.trust_remote_code)
        return RowEncoder(processor, self.labels, self.image_size)

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
        self._terms = [callback for callback in self.trainer.callbacks if isinstance(callback, DistillationLoss)]  # type: ignore[attr-defined]
        if not any(self.coefficient(term) > 0 for term in self._terms):
            raise InputError("no loss has a weight above 0: name one, e.g. --losses.ce.class_path=CrossEntropy")

    def coefficient(self, term: DistillationLoss) -> float:
        """Hard terms take (1 - λ) times their weight, soft terms λ times theirs."""
        return (self.lambda_soft if term.is_soft else 1 - self.lambda_soft) * term.weight

    def training_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:
        """The weighted objective over a micro-batch's share of the optimizer step's response tokens."""
        total = self._zero()
        for task, rows in batch.tasks.items():
            task_total = self._task_loss(task, rows, batch.step_tokens[task])
            total = total + self.task_weights[task] * task_total
        self._note("loss/total", total)
        # DDP and Lightning divide by these; the weighting is by the step's tokens, which are counted over all of them.
        return total * (self.trainer.world_size * self.trainer.accumulate_grad_batches)

    def _task_loss(self, task: Task, rows: RowBatch, step_tokens: int) -> Tensor:
        assert self.model is not None
        hidden = hidden_states(self.model, rows.inputs).flatten(0, 1)[rows.positions]
        logits = head(self.model)(hidden)
        total = self._zero()
        for term in self._terms:
            if task in term.tasks and (coefficient := self.coefficient(term)) > 0:
                value = term.token_loss(logits, rows.targets, rows.soft_labels).sum() / step_tokens
                self._note(f"loss/{task}/{term.name}", value)
                total = total + coefficient * value
        self._note(f"loss/{task}/total", total)
        return total

    def _zero(self) -> Tensor:
        """A zero with a graph to every trained weight, so that a rank without posts takes part in the reduction."""
        return sum(
            (parameter.sum() * 0.0 for parameter in self.parameters() if parameter.requires_grad), torch.zeros(())
        )

    def _note(self, name: str, value: Tensor) -> None:
        """Adds a micro-batch's share to the step's value of a loss."""
        value = value.detach()
        self._step_sums[name] = self._step_sums[name] + value if name in self._step_sums else value

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Logs the losses of the whole optimizer step, over all micro-batches and ranks, when it is time to log."""
        sums, self._step_sums = self._step_sums, {}
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.trainer.global_step + 1) % every:
            return
        # Every rank names every loss, a rank without posts too: the reduction needs equal shapes.
        names = ["loss/total"]
        for task in self.tasks:
            names += [
                f"loss/{task}/{term.name}" for term in self._terms if task in term.tasks and self.coefficient(term) > 0
            ]
            names.append(f"loss/{task}/total")
        values = torch.stack([sums.get(name, torch.zeros((), device=self.device)).float() for name in names])
        values = self.trainer.strategy.reduce(values, reduce_op="sum")
        self.log_dict(dict(zip(names, values.unbind(), strict=True)))
        self.log("loss", values[0], prog_bar=True, logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what is trained, and says what it was trained from."""
        assert self.model is not None
        trained, source = trained_state(self.model), find_model(self.pretrained)
        checkpoint["state_dict"] = {f"model.{name}": value for name, value in trained.items()}
        checkpoint["mulcot"] = {
            "pretrained": source.name if source.checkpoint is None else str(source.checkpoint),  # from any folder
            "lora": asdict(self.lora) if self.lora else None,
            "freeze_vision": self.freeze_vision,
            "labels": list(self.labels),
            "image_size": list(self.image_size) if self.image_size else None,
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
        return sorted((judged for rank in ranks for judged in rank), key=lambda judged: judged[0])

    def export(self, folder: Path) -> None:
        """Writes the model as an ordinary Hugging Face folder."""
        assert self.model is not None
        save_model(self.model, self.encoder.processor, self.labels, self.image_size, folder)


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
