"""The teacher stage: `mulcot predict` over posts, which asks a teacher for a rationale of each."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mulcot.teachers.base import Teacher
from mulcot.teachers.store import LabelStore
from mulcot.types import DEFAULT_LABELS, SPLITS, InputError, Post
from stages.background import BackgroundLoop
from stages.dialogue import Dialogue, Outcome
from stages.rationale_files import write_rationale_files

DRAIN_SECONDS: Final = 60.0
"""How long a run that is being stopped waits for replies that are already paid for."""


class TeacherStage(LightningModule):
    """Asks a teacher about every post and writes the rationales that hold.

    Batches are lists of posts. They feed one event loop that outlives them: `predict_step` hands its posts over and
    waits only while `concurrency` of them are under way. A run that ends early, by an error or by Ctrl-C, lets the
    requests already sent finish, and the next run over the same `stage_dir` goes on from the label store.

    Writes `<stage_dir>/labels.sqlite` while it runs; at the end `rationales-<split>.jsonl` and
    `rejects-<split>.jsonl` for every split, in the order of the posts, and `metrics.json`.

    Args:
        teacher: Who writes the rationales.
        stage_dir: The stage's folder.
        labels: The labels of the data set.
        max_reasks: How often a refused reply is asked for again, for predicting and for explaining each.
        concurrency: How many posts are under way at once.
        accept_unlabelled: Whether a post without a gold label takes the teacher's own label.
    """

    predict_kind = "posts"

    def __init__(
        self,
        teacher: Teacher,
        stage_dir: Path,
        labels: Sequence[str] = DEFAULT_LABELS,
        max_reasks: int = 2,
        concurrency: int = 16,
        accept_unlabelled: bool = False,
    ) -> None:
        super().__init__()
        if concurrency < 1:
            raise InputError(f"concurrency: must be 1 or more, is {concurrency}")
        self.stage_dir = Path(stage_dir)
        self.concurrency = concurrency
        self._start_dialogue = partial(
            Dialogue, teacher, labels=labels, max_reasks=max_reasks, accept_unlabelled=accept_unlabelled
        )
        self._store: LabelStore | None = None
        self._dialogue: Dialogue | None = None
        self._loop: BackgroundLoop | None = None
        self._outcomes: dict[str, list[Future[Outcome]]] = {}

    def configure_callbacks(self) -> list[Callback]:
        """The callback that closes the stage when the run fails anywhere."""
        return [_CloseOnException()]

    def setup(self, stage: str) -> None:
        """Refuses what cannot work before anything is paid for.

        Raises:
            InputError: More than one process, or a reduced precision (posts hold no numbers to reduce).
        """
        if self.trainer.world_size > 1:
            raise InputError(
                f"the teacher stage runs in one process, not {self.trainer.world_size}: "
                "set trainer.devices and trainer.num_nodes to 1 and raise model.concurrency instead"
            )
        precision = str(self.trainer.precision)
        if precision != "32-true" and not precision.endswith("mixed"):
            # Lightning would try to convert the numbers in a batch, and fail on posts with words about dataclasses.
            raise InputError(
                f"the teacher stage computes nothing: trainer.precision is {precision!r}, must be '32-true'"
            )

        # Lightning's notice that the hook below was overridden although there is a data module; it is meant.
        warnings.filterwarnings("ignore", message="You have overridden `transfer_batch_to_device` in `LightningModule`")

    def on_predict_start(self) -> None:
        """Opens the label store and starts the event loop.

        Raises:
            InputError: Another process holds the store, or the data module names too few splits.
        """
        self._outcomes = {split: [] for split in self._splits()}
        self._store = LabelStore(self.stage_dir / "labels.sqlite")
        self._dialogue = self._start_dialogue(self._store)
        self._loop = BackgroundLoop(self.concurrency)

    def transfer_batch_to_device(self, batch: list[Post], device: torch.device, dataloader_idx: int) -> list[Post]:
        """The batch as it is: posts live on no device."""
        return batch

    def predict_step(self, batch: list[Post], batch_idx: int, dataloader_idx: int = 0) -> int:
        """Hands the posts over and says how many they are; their dialogues end later.

        Raises:
            Exception: What an earlier dialogue raised; the run stops there.
        """
        assert self._loop is not None
        assert self._dialogue is not None
        outcomes = self._outcomes[list(self._outcomes)[dataloader_idx]]
        for post in batch:
            outcomes.append(self._loop.submit(partial(self._dialogue.run, post)))
        return len(batch)

    def on_predict_end(self) -> None:
        """Waits for every dialogue, closes the store and writes the files.

        Raises:
            Exception: What a dialogue raised; no file is written then.
        """
        assert self._loop is not None
        self._loop.finish()
        self.close()
        splits = {split: [future.result() for future in futures] for split, futures in self._outcomes.items()}
        write_rationale_files(self.stage_dir, splits)

    def close(self) -> None:
        """Ends the event loop, after the replies to what was already sent, and closes the store."""
        try:
            if self._loop is not None and self._dialogue is not None:
                self._loop.close(partial(self._dialogue.drain, DRAIN_SECONDS))
        finally:
            if self._store is not None:
                self._store.close()
            self._loop = self._dialogue = self._store = None

    def _splits(self) -> list[str]:
        """The names of the data loaders, in order."""
        names = list(getattr(getattr(self.trainer, "datamodule", None), "predict_splits", SPLITS))
        loaders = len(self.trainer.num_predict_batches)
        if loaders > len(names):
            raise InputError(
                f"there are {loaders} loaders of posts but only {len(names)} split names: {', '.join(names)}"
            )
        return names[:loaders]


class _CloseOnException(Callback):
    """Closes the stage on an error or on Ctrl-C, wherever in the run it happens."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the stage; the exception goes on."""
        assert isinstance(pl_module, TeacherStage)
        pl_module.close()
