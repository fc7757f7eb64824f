"""The samples that were drawn so far, on disk as they come: an interrupted augmentation goes on behind them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mulcot.types import InputError
from stages.augmentation import Sample

SAMPLES: Final = "samples"
"""The folder's name within the stage's; it goes when the stage is done."""


class SampleLog:
    """Files of samples, one for each process: what they depend on, then a line for each sample.

    A sample depends on the sampling seed, its post and its index alone, so it does not matter which process drew it.

    Args:
        folder: where the files lie; made when the first sample comes.
        settings: what the samples depend on.
        rank: which process this is.

    Raises:
        InputError: samples of other settings lie there.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], rank: int) -> None:
        self._path = folder / f"rank-{rank:03d}.jsonl"
        self._settings = json.loads(json.dumps(settings))
        self.known: dict[tuple[str, int], Sample] = {}
        """The samples of an earlier run, of all its processes, by post and index."""
        for path in sorted(folder.glob("rank-*.jsonl")):
            for sample in self._read(path):
                self.known.setdefault((sample.post_id, sample.index), sample)

    def finished(self, samples_per_post: int) -> set[str]:
        """The posts that have all their samples."""
        posts = {post_id for post_id, _ in self.known}
        return {post for post in posts if all((post, index) in self.known for index in range(samples_per_post))}

    def add(self, samples: Sequence[Sample]) -> None:
        """Commits samples: after this they are on disk, all of them or, after a crash, the first ones."""
        if not samples:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._path.read_bytes().rfind(b"\n") + 1 if self._path.exists() else 0
        lines = [] if whole else [json.dumps(self._settings, ensure_ascii=False)]
        lines += [json.dumps([each.post_id, each.index, each.reply], ensure_ascii=False) for each in samples]
        with self._path.open("r+b" if self._path.exists() else "xb") as file:
            file.seek(whole)  # a line that was cut off is written over
            file.truncate()
            file.write("".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass"))
            file.flush()
            os.fsync(file.fileno())

    def _read(self, path: Path) -> Iterator[Sample]:
        head, *lines = path.read_bytes().split(b"\n")[:-1] or [b""]
        if not head:
            return
        try:
            settings = json.loads(head)
            samples = [Sample(*json.loads(line.decode("utf-8", "surrogatepass"))) for line in lines]
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: damaged; delete it, and its samples are drawn again, or give --fresh") from error
        names = sorted(
            name for name in settings.keys() | self._settings.keys() if settings.get(name) != self._settings.get(name)
        )
        if names:
            told = ", ".join(f"{name} was {settings.get(name)}, is {self._settings.get(name)}" for name in names)
            raise InputError(
                f"{path}: these samples were drawn with other settings ({told}): go on with those, name another "
                "--stage, or begin anew with --fresh"
            )
        yield from samples
