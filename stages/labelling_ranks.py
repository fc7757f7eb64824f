"""Labelling with several processes: each labels its shard into a store of its own, rank 0 holds the lock and merges."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
from lightning.pytorch import Trainer

from mulcot.launching import StageLauncher
from mulcot.teachers.base import TeacherPausedError
from mulcot.teachers.store import LabelStore
from mulcot.teachers.store_merge import merge_store, remove_store
from mulcot.types import InputError

STORE_NAME: Final = "labels.sqlite"
_LONG: Final = timedelta(days=30)
"""How long a rank waits for the others: their shards may take days."""


class Ranks:
    """What the processes of a run say to each other. With one process there is nobody to talk to.

    Args:
        trainer: knows the processes.
        folder: the stage's folder, which all of them see.
    """

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self.rank = trainer.global_rank
        self.size = trainer.world_size
        self._trainer = trainer
        self._folder = folder
        self._group: Any = None
        if self.size > 1:
            self._group = torch.distributed.new_group(backend="gloo", timeout=_LONG)

    def open_first(self) -> LabelStore | None:
        """The run's store and its lock on rank 0, with a copy of the store for each further rank; None on those.

        Raises:
            InputError: it cannot be opened.
            SystemExit: likewise, on a further rank.
        """
        store, error = None, None
        if self.rank == 0:
            try:
                store = self._open_first()
            except InputError as refused:
                error = refused
        self.agree(error)
        return store

    def open_own(self) -> LabelStore:
        """The store that a further rank labels into.

        Raises:
            InputError: it cannot be opened.
        """
        return LabelStore(self._path(self.rank))

    def agree(self, error: Exception | None) -> None:
        """Waits for all processes; each of them says what went wrong with it.

        Raises:
            InputError: something did, somewhere; of a further process rank 0 tells, which has the terminal.
            SystemExit: likewise, on a further rank, with the same exit code.
            Exception: `error`, where it is none of the user's.
        """
        said = None if error is None else (str(error), error.exit_code if isinstance(error, InputError) else 1)
        failed = [(rank, *one) for rank, one in enumerate(self.gather(said)) if one is not None]
        if not failed:
            return
        if error is not None and (self.rank == 0 or not isinstance(error, InputError)):
            raise error
        rank, text, code = failed[0]
        if self.rank > 0:
            raise SystemExit(code)
        raise (TeacherPausedError if code == TeacherPausedError.exit_code else InputError)(f"process {rank}: {text}")

    def gather(self, mine: Any) -> list[Any]:
        """What every process says, by rank."""
        if self.size == 1:
            return [mine]
        said: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(said, mine, group=self._group)
        return said

    def merge(self, store: LabelStore) -> None:
        """Brings the stores of the further ranks, which are closed by now, into that of rank 0."""
        for path in sorted(self._folder.glob("labels.rank*.sqlite")):
            merge_store(store, path, append=False)
            remove_store(path)

    def hand_on(self) -> None:
        """After a signal: ends the processes that this one started as well, which go on asking otherwise."""
        if isinstance(launcher := self._trainer.strategy.launcher, StageLauncher):
            launcher.hand_on()

    def wait_for_others(self, seconds: float) -> None:
        """After a signal: lets the processes that this one started end by themselves, for so long."""
        if isinstance(launcher := self._trainer.strategy.launcher, StageLauncher):
            launcher.wait_for_others(seconds)

    def _open_first(self) -> LabelStore:
        store = LabelStore(self._folder / STORE_NAME)
        try:
            self.merge(store)  # what a run that was killed left
            for rank in range(1, self.size):
                store.copy_to(self._path(rank))
        except BaseException:
            store.close()
            raise
        return store

    def _path(self, rank: int) -> Path:
        return self._folder / f"labels.rank{rank}.sqlite"
