"""The folder of one stage of a run: whose it is, how it is emptied, and what declares its work done."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from mulcot.checkpoint_digests import forget_digests
from mulcot.checkpoints import LAST, NO_ROOM, PREVIOUS
from mulcot.files import sweep, write_atomic
from mulcot.launches import note_begin, was_begun_before
from mulcot.locks import locked
from mulcot.manifests import MANIFEST_NAME, make_manifest, output_digests, read_manifest, write_manifest
from mulcot.models import MODEL_FOLDER
from mulcot.types import InputError
from stages.base import TEST_PREDICTIONS
from stages.sample_log import SAMPLES

LOCK: Final = ".lock"
KEPT_BY_FRESH: Final = {"log.txt", "command.key", LOCK}
KEPT_STORES: Final = "labels."
"""How the files of the label store begin. They stay: what a teacher was paid for is never thrown away, and the lock of
another process is not to be taken from it."""
KEY: Final = "command.key"
METRICS: Final = "metrics.json"
_OUTPUTS: Final = {MODEL_FOLDER, "cache", METRICS}
"""What later stages read of a stage, beside its JSON Lines."""
_LATER: Final = {TEST_PREDICTIONS}
"""What another verb may write after the stage is done."""
_TRACES: Final = (MANIFEST_NAME, KEY, METRICS, "config-fit.yaml", "config-predict.yaml", "progress.json", "log.txt")
"""By one of these a folder is known as a stage's."""


class StageFolder:
    """The folder of one stage.

    Args:
        path: The folder, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def last(self) -> Path:
        """The checkpoint of the last step that was saved, to resume from."""
        return self.path / "checkpoints" / LAST

    @property
    def checkpoints(self) -> list[Path]:
        """All checkpoints that a fit can go on from, the newest first."""
        return [self.last, self.last.with_name(PREVIOUS), self.best]

    def refuse_finished(self, *, trains: bool, is_first: bool) -> None:
        """Raises an InputError when the stage is done; one that trains says how it is trained on."""
        if read_manifest(self.path) is None:
            return
        if was_begun_before(self.path):
            print(f"{self.path} was finished before this job was started again")
            raise SystemExit(0)
        if not is_first:  # one process tells of it
            return
        longer = (
            f"; to train it longer: --stage OTHER --ckpt_path {self.last} --allow_changed schedule"
            if trains and self.last.is_file()
            else ""
        )
        raise InputError(f"{self.path} is finished: give --fresh to start it anew, or another --stage{longer}")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes out of the folder, made where it is not there, and removes what a killed one left.

        Raises:
            InUseError: Another process works in it.
            InputError: It cannot be written to.
        """
        refusal = f"{self.path}: another process works on this stage; wait for it or end it"
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.path / LOCK, refusal))
            except OSError as error:
                raise _refused(self.path, error) from error
            sweep(Path(place, name) for place, _, names in os.walk(self.path) for name in names)
            yield

    def begin(self, key: str, fresh: bool) -> None:
        """Empties the folder of earlier work where that is asked for, and notes whose work lies in it now.

        Raises:
            InputError: It was to be emptied and is no stage's folder, or it cannot be written to.
        """
        try:
            if fresh:
                self._empty()
            note_begin(self.path)
            write_atomic(self.path / KEY, key)
        except OSError as error:
            raise _refused(self.path, error) from error

    def finish(
        self,
        metrics: dict[str, Any],
        argv: Sequence[str],
        inputs: dict[str, str],
        seed: int,
        started: datetime,
    ) -> None:
        """Writes the metrics, then the manifest, whose presence means that the stage is done."""
        write_atomic(self.path / METRICS, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
        made = [
            path
            for path in self.path.iterdir()
            if path.name in _OUTPUTS or (path.suffix == ".jsonl" and path.name not in _LATER)
        ]
        previous = self.last.with_name(PREVIOUS)
        previous.unlink(missing_ok=True)  # for a resume, which there will be none of
        forget_digests(previous.parent, PREVIOUS)
        outputs = output_digests(self.path, sorted(made))
        write_manifest(self.path, make_manifest(argv, inputs=inputs, outputs=outputs, seed=seed, started=started))
        shutil.rmtree(self.path / SAMPLES, ignore_errors=True)  # which only a resume would read

    def _empty(self) -> None:
        """Removes what a stage made before, the manifest first: half a stage must not look finished."""
        present = [path for path in self.path.iterdir() if path.name != LOCK] if self.path.is_dir() else []
        if present and not any((self.path / name).is_file() for name in _TRACES):
            raise InputError(
                f"{self.path} holds {min(path.name for path in present)!r} and is no stage's folder, so --fresh does "
                "not empty it: name another --stage"
            )
        (self.path / MANIFEST_NAME).unlink(missing_ok=True)
        for path in present:
            if path.name in (*KEPT_BY_FRESH, MANIFEST_NAME) or path.name.startswith(KEPT_STORES):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _refused(path: Path, error: OSError) -> InputError:
    """Why a folder cannot be written to, and what helps."""
    place = next(each for each in (path, *path.parents) if each.exists())
    remedy = "make room" if error.errno in NO_ROOM else "name another --run_dir, or gain access"
    theirs, mine = place.stat().st_uid, os.getuid()
    owner = f"; {place} belongs to user {theirs}, this is user {mine}" if theirs != mine else ""
    return InputError(f"{path} cannot be written to ({error.strerror}){owner}: {remedy}")


def check_stage_name(name: str) -> None:
    """Refuses a stage's name that would lead out of its run, or be the run's folder itself."""
    if name in ("", ".", "..") or Path(name).name != name:
        raise InputError(f"--stage {name!r} must be the name of a folder within the run, such as student")
