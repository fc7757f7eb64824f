"""The student: learns reasoning and classification jointly, from hard labels and the assistant's soft labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from mulcot.callbacks import DistillationLoss
from mulcot.losses import Schedule, ViewKind, check_range
from mulcot.models import (
    DType,
    Lora,
    Quantise,
    head_rows,
    load_processor,
    row_form,
    shared_rows,
    text_config,
    vocabulary_difference,
)
from mulcot.ranges import Count, Labels, NonNegative, Share, Side
from mulcot.rows import Layout, RowEncoder, RowForm
from mulcot.soft_labels import SoftLabelCache
from mulcot.types import DEFAULT_LABELS, InputError, Task
from stages.base import ModelStage
from stages.objective import Objective
from stages.online_assistant import OnlineAssistant
from stages.optimizer import Optimizer
from stages.published import PublishedQuirks
from stages.soft_label_build import soft_label_fingerprint


class StudentStage(ModelStage):
    """Trains the student: per task (1 - λ) · hard terms + λ · soft terms.

    Args:
        pretrained: see `ModelStage`.
        stage_dir: see `ModelStage`.
        assistant: the assistant whose soft labels are learnt: a finished stage, a folder, or a checkpoint. Null when
            there are none.
        lambda_soft: λ, the share of the soft terms (0 to 1), a number or a schedule; the paper uses 0.3.
        online_assistant: runs the assistant beside the student instead of reading a cache of its soft labels: for
            temperature schedules, losses on hidden states and across tokenizers, and where a cache is too large.
        assistant_dtype: of the assistant's weights beside the student.
        assistant_quantise: keeps the language model of the assistant beside the student in `8bit` or `4bit`: less
            memory, not the same soft labels. `pip install mulcot[quantised]`.
        published: computes what the published training code computes where it differs from the paper's formula: true
            for all of it, or a mapping of single quirks. For comparisons with the paper's numbers.
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
        quantise: see `ModelStage`.
        activation_checkpointing: see `ModelStage`.
        compile_layers: see `ModelStage`.
    """

    kind = "student"

    def __init__(
        self,
        pretrained: str,
        stage_dir: Path,
        assistant: str | None = None,
        lambda_soft: Share | Schedule = 0.3,
        online_assistant: bool = False,
        assistant_dtype: DType = "float32",
        assistant_quantise: Quantise | None = None,
        published: bool | PublishedQuirks = False,
        title: str = "student, distilled",
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
            quantise,
            activation_checkpointing,
            compile_layers,
        )
        check_range(lambda_soft, "model.init_args.lambda_soft", low=0.0, high=1.0)
        if online_assistant and assistant is None:
            raise InputError("model.init_args.online_assistant is true and model.init_args.assistant names none")
        self.assistant = assistant
        self.lambda_soft = lambda_soft
        self.online_assistant = online_assistant
        self.assistant_dtype: DType = assistant_dtype
        self.assistant_quantise = assistant_quantise
        self.quirks = PublishedQuirks.of(published)
        self.pad_end = self.quirks.pad_end
        self.quirks.check(online_assistant, lora is not None)
        if self.quirks.vision_lora:
            self.lora = replace(cast(Lora, lora), vision=True)
        self._shares_tokens = True

    def input_models(self) -> list[str]:
        """See the base class; the assistant is read for its vocabulary, and runs beside the student when asked to."""
        return [self.pretrained, *([self.assistant] if self.assistant else [])]

    def row_forms(self, layout: Layout, row_tokens: int | None) -> tuple[RowForm, RowForm]:
        """See the base class; an assistant that reads the student's own rows takes them in the student's form."""
        if self.quirks.kl_everywhere:  # at every position of a row and of its padding, so of rows that are apart
            layout = "paired"
        beside = None if self.objective is None else self.objective.assistant
        if beside is None:
            return super().row_forms(layout, row_tokens)
        theirs = row_form(beside.model, layout, row_tokens)
        if self.assistant_encoder is None and theirs.layout != layout:
            layout = theirs.layout
        mine, _ = super().row_forms(layout, row_tokens)
        return mine, theirs

    def setup(self, stage: str) -> None:
        """Checks, before the first step, what student and assistant have in common."""
        if stage != "fit" or self.assistant is None:
            return
        processor = load_processor(self.assistant, trust_remote_code=self.trust_remote_code)
        theirs = RowEncoder(processor, self.labels, self.image_size, pad_end=self.pad_end)
        mine_of, theirs_of = self.encoder.fingerprint(), theirs.fingerprint()
        self._shares_tokens = mine_of["vocabulary"] == theirs_of["vocabulary"]
        if self.online_assistant:
            self.assistant_encoder = None if mine_of == theirs_of else theirs
        elif not self._shares_tokens:
            raise InputError(
                f"the tokenizers of {self.pretrained} and {self.assistant} differ ("
                f"{vocabulary_difference(self.encoder.tokenizer, theirs.tokenizer)}), so cached soft labels per token "
                "mean nothing. Take models of one family, or the cross-tokenizer "
                "loss (--losses.kl UniversalLogit with model.init_args.online_assistant=true), or train on hard labels "
                "alone (model.init_args.lambda_soft=0, --losses.kl=null)"
            )
        else:
            self.soft_label_fingerprint = soft_label_fingerprint(self.assistant, self.encoder)

    def configure_model(self) -> None:
        """See the base class; the published code gives the student as many rows as the assistant has."""
        if self.quirks.resized_heads:
            assert self.assistant is not None
            config = text_config(self.assistant, trust_remote_code=self.trust_remote_code)
            self.head_rows = int(config.vocab_size)
        super().configure_model()

    def make_objective(self, terms: Sequence[DistillationLoss]) -> Objective:
        """See the base class; soft terms need a cache, or the assistant beside the student."""
        beside = self._load_assistant() if self.online_assistant else None
        objective = Objective(terms, self.lambda_soft, beside, self.quirks)
        names = objective.learns_from_assistant()
        if beside is not None:
            kinds: tuple[ViewKind, ...] = ("dense", "hidden") if self._shares_tokens else ("aligned",)
            objective.check_view(kinds)
        elif names:
            folder = self.trainer.datamodule.soft_label_folder  # type: ignore[attr-defined]
            if folder is None:
                raise InputError(
                    f"the losses {names} learn from soft labels and data.init_args.soft_labels is null: give the cache "
                    "that `mulcot predict --config soft_labels.yaml` made, let the assistant run beside the student "
                    "(model.init_args.online_assistant=true), or set model.init_args.lambda_soft=0"
                )
            objective.check_cache(SoftLabelCache.describe(folder))
        return objective

    def held_out_objective(self) -> Objective:
        """See the base class; the assistant is asked itself, since a cache covers the training posts alone."""
        objective = super().held_out_objective()
        if self.online_assistant or not objective.learns_from_assistant():
            return objective
        beside = Objective(objective.terms, self.lambda_soft, self._load_assistant(), self.quirks)
        kinds: tuple[ViewKind, ...] = ("dense",)
        beside.check_view(kinds)
        return beside

    def on_fit_end(self) -> None:
        """Lets the assistant go: what follows is about the student alone."""
        self.objective = None

    def _load_assistant(self) -> OnlineAssistant:
        """The assistant on the student's device, its head cut to the ids that both have."""
        assert self.model is not None
        assert self.assistant is not None
        assistant = OnlineAssistant(
            self.assistant,
            dtype=self.assistant_dtype,
            attention=self.attention,
            dropout=self.quirks.assistant_dropout,
            trust_remote_code=self.trust_remote_code,
            quantise=self.assistant_quantise,
            compute=self.compute_dtype(self.assistant_quantise),
        )
        assistant.to(self.device)
        if self._shares_tokens and not self.quirks.resized_heads:
            assistant.rows = shared_rows(head_rows(self.model), assistant.head_rows, self.encoder.tokenizer)
        return assistant

    def feature_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Layers and hidden size of the student, then of the assistant, for losses on hidden states."""
        if not self.online_assistant or self.assistant is None:
            raise InputError(
                "losses on hidden states need the assistant beside the student: set "
                "model.init_args.online_assistant=true and model.init_args.assistant"
            )
        configs = [
            text_config(name, trust_remote_code=self.trust_remote_code) for name in (self.pretrained, self.assistant)
        ]
        mine, theirs = [(int(config.num_hidden_layers), int(config.hidden_size)) for config in configs]
        return mine, theirs
