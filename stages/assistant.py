"""The assistant: learns both tasks from hard labels; then samples rationales and gives soft labels for the student."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from mulcot.callbacks import DistillationLoss
from mulcot.files import write_atomic
from mulcot.generation import Replies, ReplyWriter, SeededSampler, sample_seed
from mulcot.generation.vllm_engine import VllmEngine
from mulcot.models import DType, Lora, Quantise, head_rows, merged_if_exact
from mulcot.prompts import get_prompt
from mulcot.rows import Layout, MicroBatch, QuestionBatch, RowForm
from mulcot.soft_labels import SoftLabelCache, SoftLabelForm, SoftLabelKind
from mulcot.types import DEFAULT_LABELS, InputError, Task
from stages.all_ranks import of_all_ranks
from stages.augmentation import Augmentation, Sample, select
from stages.base import ModelStage, PredictKind
from stages.objective import Objective
from stages.optimizer import Optimizer
from stages.sample_log import SAMPLES, SampleLog
from stages.soft_label_build import SoftLabelBuild, build_line, soft_label_fingerprint


class AssistantStage(ModelStage):
    """Trains the assistant (`fit`), samples rationales or caches soft labels with it (`predict`).

    Args:
        pretrained: see `ModelStage`.
        stage_dir: see `ModelStage`.
        predicts: what `predict` does: `rationales` samples them, `soft_labels` builds the cache.
        samples_per_post: rationales sampled for each training post.
        temperature: of the sampling; the paper uses 0.7.
        engine: what samples rationales: `transformers`, the loaded model itself, or `vllm`, where its extra is
            installed: it reads the model's folder and draws other samples from the same seeds.
        sampling_seed: decides the samples, together with post and index alone; the draws of `sampled` soft labels too,
            together with post, task and response.
        soft_label_form: what the soft-label cache holds of each response token: `top_k`, the likeliest ids and the mass
            of the others, or `sampled`, ids drawn from the whole distribution, whose loss is right on average.
        soft_label_k: ids kept for each response token by `top_k`.
        soft_label_draws: draws for each response token by `sampled`.
        soft_label_temperature: the T that the student's loss will use; the paper uses 2.
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

    kind = "assistant"

    def __init__(
        self,
        pretrained: str,
        stage_dir: Path,
        predicts: Literal["rationales", "soft_labels"] = "rationales",
        samples_per_post: int = 1,
        temperature: float = 0.7,
        sampling_seed: int = 0,
        soft_label_form: SoftLabelKind = "top_k",
        soft_label_k: int = 64,
        soft_label_draws: int = 64,
        soft_label_temperature: float = 2.0,
        title: str = "assistant",
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
        engine: Literal["transformers", "vllm"] = "transformers",
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
        if not temperature > 0:
            raise InputError(f"model.init_args.temperature is {temperature}; it must be above 0")
        self.predicts = predicts
        self.samples_per_post = samples_per_post
        self.temperature = temperature
        self.sampling_seed = sampling_seed
        self.engine = engine
        if soft_label_form == "sampled":
            self.soft_label_form = SoftLabelForm.sampled(soft_label_draws, soft_label_temperature, sampling_seed)
        else:
            self.soft_label_form = SoftLabelForm(soft_label_form, float(soft_label_temperature), k=soft_label_k)
        self._vllm: VllmEngine | None = None
        self._writer: ReplyWriter | None = None
        self._asked: list[tuple[list[tuple[str, int]], Replies]] = []
        self._samples: list[Sample] = []
        self._log: SampleLog | None = None
        self._build: SoftLabelBuild | None = None

    @property
    def predict_kind(self) -> PredictKind:  # type: ignore[override]
        """Prompts to sample from, or the responses to be scored."""
        return "questions" if self.predicts == "rationales" else "responses"

    def make_objective(self, terms: Sequence[DistillationLoss]) -> Objective:
        """See the base class; nobody teaches the assistant soft labels."""
        soft = [term.name for term in terms if term.views]
        if soft:
            raise InputError(f"the assistant learns from hard labels alone: remove --losses.{soft[0]}=null")
        return super().make_objective(terms)

    @property
    def _samples_with_vllm(self) -> bool:
        return self.engine == "vllm" and self.predicts == "rationales" and self.trainer.state.fn == "predict"

    def configure_model(self) -> None:
        """See the base class; the model that vLLM holds is not loaded a second time."""
        if self._samples_with_vllm:
            settings = (self.max_new_tokens, self.temperature, self.dtype_name, self.trust_remote_code)
            self._vllm = self._vllm or VllmEngine(self.pretrained, self.encoder, *settings)
        else:
            super().configure_model()

    def row_forms(self, layout: Layout, row_tokens: int | None) -> tuple[RowForm, RowForm]:
        """See the base class."""
        return (RowForm(), RowForm()) if self._vllm is not None else super().row_forms(layout, row_tokens)

    def setup(self, stage: str) -> None:
        """Reads the samples that an interrupted run has left."""
        if stage == "predict" and self.predicts == "rationales":
            settings = soft_label_fingerprint(self.pretrained, self.encoder) | {
                "temperature": self.temperature,
                "sampling_seed": self.sampling_seed,
                "max_new_tokens": self.max_new_tokens,
                "engine": self.engine,
                "dtype": self.dtype_name,
                "quantise": self.quantise,
                "precision": str(self.trainer.precision),
                "inputs": self.inputs,
            }
            self._log = SampleLog(self.stage_dir / SAMPLES, settings, self.trainer.global_rank)

    def finished_posts(self) -> Collection[str]:
        """See the base class: those with all their samples."""
        return self._log.finished(self.samples_per_post) if self._log is not None else ()

    def on_predict_start(self) -> None:
        """Opens the soft-label cache; nothing of the model is trained or saved any more."""
        if self.model is not None:
            self.model = merged_if_exact(self.model)
        if self.predicts == "soft_labels":
            assert self.model is not None
            self._build = SoftLabelBuild(
                self.stage_dir / "cache",
                soft_label_fingerprint(self.pretrained, self.encoder),
                self.soft_label_form,
                # Ids beyond the tokenizer are padding of the head, and another model of the family may have fewer.
                rows=min(head_rows(self.model), len(self.encoder.tokenizer)),
                rank=self.trainer.global_rank,
                made_with={
                    "dtype": self.dtype_name,
                    "precision": str(self.trainer.precision),
                    **({"quantise": self.quantise} if self.quantise else {}),
                },
            )

    def predict_step(self, batch: QuestionBatch | MicroBatch, batch_idx: int, dataloader_idx: int = 0) -> int:
        """Samples rationales for prompts, or scores responses; says how many rows that were."""
        if isinstance(batch, MicroBatch):
            assert self._build is not None
            assert self.model is not None
            self._build.add(self.model, batch)
            return sum(len(rows.rows) for rows in batch.tasks.values())
        last = batch_idx + 1 == self.trainer.num_predict_batches[0]
        return self._sample(batch, last=last)

    def _sample(self, batch: QuestionBatch, *, last: bool) -> int:
        """Samples rationales; they are in `_samples` after the last batch."""
        asked = [(post.id, index) for index in range(self.samples_per_post) for post in batch.posts]
        seeds = [sample_seed(self.sampling_seed, *each) for each in asked]
        if self._vllm is not None:
            rows = () if batch.prompts is None else batch.prompts.rows * self.samples_per_post
            replies = self._vllm.write(rows, seeds)
            self._keep([Sample(*key, reply) for key, reply in zip(asked, replies, strict=True)])
            return len(asked)
        assert self.model is not None
        if self._writer is None:
            self._writer = ReplyWriter(self.model, self.encoder, self.max_new_tokens)
        if batch.prompts is not None:  # a rank may have no posts
            sampler = SeededSampler(seeds, self.temperature)
            self._asked.append((asked, self._writer.add(batch.prompts, sampler, copies=self.samples_per_post)))
        if last:
            self._writer.finish()
            self._writer = None
        for keys, written in [each for each in self._asked if not each[1].unfinished]:
            texts = [self.encoder.decode(ids) for ids in written.ids]
            self._keep([Sample(*key, text) for key, text in zip(keys, texts, strict=True)])
        self._asked = [each for each in self._asked if each[1].unfinished]
        return len(asked)

    def _keep(self, samples: list[Sample]) -> None:
        """Commits samples of a batch, without those that there were."""
        assert self._log is not None
        new = [sample for sample in samples if (sample.post_id, sample.index) not in self._log.known]
        self._log.add(new)
        self._samples += new

    def on_predict_end(self) -> None:
        """Writes what all ranks made."""
        if self._build is not None:
            self._close_soft_labels(self._build)
            return
        samples = [sample for rank in of_all_ranks(self.trainer, self._samples) for sample in rank]
        if self.trainer.is_global_zero:
            assert self._log is not None
            asked = range(self.samples_per_post)
            known = [sample for sample in self._log.known.values() if sample.index in asked]
            self._write_rationales([*known, *samples])

    def _close_soft_labels(self, build: SoftLabelBuild) -> None:
        build.writer.flush()
        skipped = sum(
            of_all_ranks(self.trainer, build.skipped)
        )  # waits for all ranks, so that rank 0 closes a whole cache
        if not self.trainer.is_global_zero:
            return
        build.writer.close()
        cache = SoftLabelCache(self.stage_dir / "cache")
        print(build_line(cache))
        self.outcome = {
            "kind": "soft_labels",
            "title": "soft labels",
            "tokens": cache.tokens,
            "rows_found_finished": skipped,
            "bytes_per_token": cache.bytes_per_token,
            "kept_mass": cache.kept_mass,
            "rounding_error": cache.rounding_error,
            "verification": cache.verification,
            "form": cache.kind,
            **{name: value for name, value in cache.form.settings().items() if name != "kind"},
        }

    def _write_rationales(self, samples: list[Sample]) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        order = {post.id: index for index, post in enumerate(data.posts("train"))}
        samples.sort(key=lambda sample: (order[sample.post_id], sample.index))
        outcome = select(
            samples,
            {post.id: post for post in data.posts("train")},
            data.known_rationales(),
            self.labels,
            self.pretrained,
            {setting: get_prompt(setting, "reasoning").hash for setting in ("msc", "masc")},
        )
        self._export(outcome, len(order), len(samples))

    def _export(self, outcome: Augmentation, posts: int, sampled: int) -> None:
        kept = "".join(record.to_json() + "\n" for record in outcome.kept)
        refused = [
            {"post_id": sample.post_id, "index": sample.index, "reason": reason, "reply": sample.reply}
            for sample, reason in outcome.refused
        ]
        rejects = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in refused)
        write_atomic(self.stage_dir / "rationales-train.jsonl", kept)
        write_atomic(self.stage_dir / "rejects-train.jsonl", rejects)
        self.outcome = {
            "kind": "augment",
            "title": "augment",
            "posts": posts,
            "sampled": sampled,
            "kept": len(outcome.kept),
            "refused": outcome.counts(),
        }
