"""Whether answers and rationales depend on what they speak of: the test posts asked about again, altered."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich import get_console

from mulcot.callbacks.perturbations import PARTS, Perturbation, perturbations, picture_digest
from mulcot.callbacks.probe_display import show_probes
from mulcot.callbacks.sampled_rationales import Judged
from mulcot.image_text import ImageTextModel
from mulcot.images import load_image
from mulcot.metrics.faithfulness import aspect_swaps, changes, conflict
from mulcot.metrics.grounding import agreement
from mulcot.metrics.probe_files import (
    PROBES,
    Agreement,
    AspectSwaps,
    Conflict,
    Grounding,
    Probes,
    Unavailable,
    write_probes,
)
from mulcot.rows import QuestionBatch
from mulcot.types import Answer, InputError, Post, Rationale, Task

_NO_WEIGHTS: Final = (
    "no weights of an image-text model are named: give probes.clip_pretrained, a file or a tag of open_clip"
)


class ProbedStage(Protocol):
    """What the callback asks of the stage that is tested."""

    stage_dir: Path
    """Where the file goes."""
    tasks: Sequence[Task]
    """What is asked."""
    judged: list[Judged]
    """The test's answers of all ranks, in the order of the posts."""

    def ask(self, batches: Iterable[QuestionBatch]) -> list[Judged]:
        """The answers of all ranks to further questions, in the order of the posts that they are about."""
        ...


class Probing(Callback):
    """After a test, asks about some of its posts again without picture, text or aspect, or with another post's.

    What changes is in `probes.json` of the stage's folder (see `Probes`), with the agreement of rationales and pictures
    by an open_clip model. With several processes each asks its share; posts, swaps and figures are those of one.

    Args:
        enabled: whether it asks at all; it takes about six times as long as the test does for as many posts.
        posts: how many of the test's posts are asked about at most, drawn by `seed`.
        seed: decides which posts, what is swapped with what, and the bootstrap.
        clip_model: a model's name in open_clip, or a JSON file with its configuration.
        clip_pretrained: its weights: a file, or a tag that open_clip fetches from the hub; null leaves the agreement
            of rationales and pictures out.
        shuffles: how many other posts' pictures each rationale is compared with.
    """

    def __init__(
        self,
        enabled: bool = False,
        posts: int = 200,
        seed: int = 0,
        clip_model: str = "ViT-B-32",
        clip_pretrained: str | None = None,
        shuffles: int = 5,
    ) -> None:
        super().__init__()
        for name, value in {"posts": posts, "shuffles": shuffles}.items():
            if value < 1:
                raise InputError(f"probes.{name} is {value}; it must be 1 or more")
        self.enabled = enabled
        self.posts = posts
        self.seed = seed
        self.clip_model = clip_model
        self.clip_pretrained = clip_pretrained
        self.shuffles = shuffles

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Loads the image-text model once for nothing, so that one that is not there stops the run at its beginning."""
        if self.clip_pretrained is not None and trainer.is_global_zero:
            self._clip(torch.device("cpu")).load()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks, writes the file and shows it."""
        stage = cast(ProbedStage, pl_module)
        judged = drawn_from(stage.judged, self.posts, self.seed)
        posts = [post for _, _, post, _ in judged]
        left_out = trainer.datamodule.leave_out  # type: ignore[attr-defined]
        parts = [part for part in PARTS if part != left_out]
        altered = perturbations(posts, [post for _, _, post, _ in stage.judged], parts, self.seed)
        answers = self._ask(trainer, pl_module, altered)
        if not trainer.is_global_zero:
            return
        probes = self._probes(judged, altered, answers, written="reasoning" in stage.tasks)
        probes.grounding = self._grounding(judged, pl_module.device)
        write_probes(stage.stage_dir / PROBES, probes)
        show_probes(probes, get_console())  # that of the progress bar, which would overwrite another one's lines

    def _ask(
        self, trainer: Trainer, pl_module: LightningModule, altered: dict[str, Perturbation]
    ) -> dict[str, list[Answer]]:
        """The answers to the posts of every perturbation, on every rank."""
        stage, data = cast(ProbedStage, pl_module), cast(Any, trainer).datamodule
        tasks = ["classification", *(task for task in stage.tasks if task == "reasoning")]
        is_shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
        answers: dict[str, list[Answer]] = {name: [] for name in altered}
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for name, perturbation in altered.items():
                if is_shown:
                    get_console().print(f"probes: {name.replace('_', ' ')}, {len(perturbation.posts)} posts")
                if perturbation.posts:
                    asked = stage.ask(data.questions_about(perturbation.posts, tasks))
                    answers[name] = [answer for _, answer, _, _ in asked]
        return answers

    def _probes(
        self,
        judged: Sequence[Judged],
        altered: dict[str, Perturbation],
        answers: dict[str, list[Answer]],
        *,
        written: bool,
    ) -> Probes:
        """Everything but the agreement with pictures."""
        before = [answer for _, answer, _, _ in judged]
        golds = [post.label for _, _, post, _ in judged]
        found = {
            name: changes(
                [before[number] for number in perturbation.numbers],
                answers[name],
                [golds[number] for number in perturbation.numbers],
                written=written,
            )
            for name, perturbation in altered.items()
        }
        return Probes(
            seed=self.seed,
            posts=len(judged),
            faithfulness=found,
            other_aspects=_other_aspects(altered, answers, golds),
            conflict=_conflict(before, answers, golds),
            grounding=Unavailable(unavailable=_NO_WEIGHTS),
        )

    def _grounding(self, judged: Sequence[Judged], device: torch.device) -> Grounding | Unavailable:
        student = [(post, answer.rationale) for _, answer, post, _ in judged if answer.rationale is not None]
        references = [(post, reference.rationale) for _, _, post, reference in judged if reference is not None]
        if self.clip_pretrained is None:
            return Unavailable(unavailable=_NO_WEIGHTS)
        if not student and not references:
            return Unavailable(unavailable="there is no rationale: the model wrote none, and no references are given")
        clip = self._clip(device)
        return Grounding(
            clip_model=self.clip_model,
            clip_pretrained=self.clip_pretrained,
            shuffles=self.shuffles,
            student=self._agreement(clip, student),
            reference=self._agreement(clip, references),
        )

    def _agreement(self, clip: ImageTextModel, given: Sequence[tuple[Post, Rationale]]) -> Agreement:
        if not given:
            return agreement(torch.zeros(0, 1), torch.zeros(0, 1), [], self.shuffles, self.seed)
        texts = clip.of_texts([rationale.image_analysis for _, rationale in given])
        pictures = clip.of_pictures(load_image(post.image) for post, _ in given)
        kinds = [picture_digest(post) for post, _ in given]
        return agreement(texts, pictures, kinds, self.shuffles, self.seed)

    def _clip(self, device: torch.device) -> ImageTextModel:
        return ImageTextModel(self.clip_model, self.clip_pretrained, str(device), user="probes")


def drawn_from(judged: Sequence[Judged], count: int, seed: int) -> list[Judged]:
    """So many of the answered posts at most, drawn by `seed`, in their order."""
    if len(judged) <= count:
        return list(judged)
    return [judged[number] for number in sorted(random.Random(f"probes {seed}").sample(range(len(judged)), count))]


def _other_aspects(
    altered: dict[str, Perturbation], answers: dict[str, list[Answer]], golds: Sequence[str | None]
) -> AspectSwaps | None:
    swapped = altered.get("aspect_swapped")
    if swapped is None:
        return None
    own = [golds[number] for number in swapped.numbers]
    return aspect_swaps(answers["aspect_swapped"], own, swapped.other_golds)


def _conflict(
    whole: Sequence[Answer], answers: dict[str, list[Answer]], golds: Sequence[str | None]
) -> Conflict | Unavailable:
    """By the answers without the picture and without the text, which are to all drawn posts."""
    text_only, image_only = answers.get("image_removed"), answers.get("text_removed")
    if text_only is None or image_only is None:
        return Unavailable(unavailable="data.init_args.leave_out takes picture or text out of every post already")
    return conflict(text_only, image_only, whole, golds)
