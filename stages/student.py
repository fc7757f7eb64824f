"""The student: learns reasoning and classification jointly, from hard labels and the assistant's soft labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mulcot.models import DType, Lora, load_processor
from mulcot.rows import vocabulary_digest
from mulcot.types import DEFAULT_LABELS, InputError, Task
from stages.base import ModelStage, Optimizer
from stages.soft_label_build import soft_label_fingerprint


class StudentStage(ModelStage):
    """Trains the student: per task (1 - λ) · hard terms + λ · soft terms.

    Args:
        pretrained: see `ModelStage`.
        stage_dir: see `ModelStage`.
        assistant: the assistant whose soft labels are learnt: a finished stage, a folder, or a checkpoint. Null when
            there are none.
        lambda_soft: λ, the share of the soft terms (0 to 1); the paper uses 0.3.
        title: see `ModelStage`.
        labels: see `ModelStage`.
        task_weights: see `ModelStage`.
        lora: see `ModelStage`.
        freeze_vision: see `ModelStage`.
        dtype: see `ModelStage`.
        attention: see `ModelStage`.
        optimizer: see `ModelStage`.
        max_new_tokens: see `ModelStage`.
        image_size: see `ModelStage`.
        trust_remote_code: see `ModelStage`.
    """

    kind = "student"

    def __init__(
        self,
        pretrained: str,
        stage_dir: Path,
        assistant: str | None = None,
        lambda_soft: float = 0.3,
        title: str = "student, distilled",
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
        super().__init__(
            pretrained,
            stage_dir,
            title,
            labels,
            task_weights,
            lora,
            freeze_vision,
            dtype,
            attention,
            optimizer,
            max_new_tokens,
            image_size,
            trust_remote_code,
        )
        if not 0 <= lambda_soft <= 1:
            raise InputError(f"model.init_args.lambda_soft is {lambda_soft}; it must be between 0 and 1")
        self.assistant = assistant
        self.lambda_soft = lambda_soft

    def input_models(self) -> list[str]:
        """See the base class; the assistant is read for its vocabulary."""
        return [self.pretrained, *([self.assistant] if self.assistant else [])]

    def setup(self, stage: str) -> None:
        """Checks, before the first step, that student and assistant write the same tokens."""
        if stage != "fit" or self.assistant is None:
            return
        processor = load_processor(self.assistant, trust_remote_code=self.trust_remote_code)
        mine, theirs = vocabulary_digest(self.encoder.tokenizer), vocabulary_digest(processor.tokenizer)
        if mine != theirs:
            raise InputError(
                f"the tokenizers of {self.pretrained} ({len(self.encoder.tokenizer)} entries) and {self.assistant} "
                f"({len(processor.tokenizer)} entries) differ, so soft labels per token mean nothing: take models of "
                f"one family, or train on hard labels alone (model.init_args.lambda_soft=0, --losses.kl=null)"
            )
        self.soft_label_fingerprint = soft_label_fingerprint(self.assistant, self.encoder)

    def on_fit_start(self) -> None:
        """See the base class; soft terms need a cache."""
        super().on_fit_start()
        soft = [term.name for term in self._terms if term.is_soft and self.coefficient(term) > 0]
        if soft and self.trainer.datamodule.soft_label_folder is None:  # type: ignore[attr-defined]
            raise InputError(
                f"the losses {soft} learn from soft labels and data.init_args.soft_labels is null: give the cache that "
                f"`mulcot predict --config soft_labels.yaml` made, or set model.init_args.lambda_soft=0"
            )
