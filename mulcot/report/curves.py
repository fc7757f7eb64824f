"""What TensorBoard's files say of a stage: one list of steps and values for every tag."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mulcot.regular_files import open_regular

FOLDER: Final = "tensorboard"
MOST_POINTS: Final = 200
"""Points of a curve that are drawn; a longer one is drawn as means of neighbours."""
_MAX_RECORD: Final = 16 << 20
"""Bytes of a record; those with pictures have hundreds of thousands, and TensorBoard holds one in memory."""
_HEAD: Final = 12
"""Bytes before a record: its length in eight, and their sum in four."""
_TAIL: Final = 4
"""Bytes of the sum behind it."""
Points = list[tuple[float, float]]


def read_scalars(stage_folder: Path) -> dict[str, Points]:
    """Every scalar of a stage, by tag, in the order of its steps.

    Of a step that was logged twice, after a resumed fit, the later value counts. A file that ends in the middle of a
    record gives what stands before, as TensorBoard shows it. Of files that TensorBoard could not read, or that are no
    regular ones, nothing is given.

    Args:
        stage_folder: The stage's folder.

    Returns:
        Step and value; {} where there are no such files.
    """
    folder = stage_folder / FOLDER
    if not folder.is_dir() or not all(_is_readable(path) for path in folder.iterdir() if "tfevents" in path.name):
        return {}
    # With it comes tensorboard, which a report without curves does not need.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # It warns of restarts on its own logger; what is drawn is the same.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(folder), {"scalars": 0, "images": 1, "histograms": 1, "tensors": 1, "audio": 1})
    try:
        events.Reload()
    except Exception:  # protobuf's own, and whatever TensorBoard makes of a record that somebody else wrote
        return {}
    return {
        tag: sorted({float(event.step): float(event.value) for event in events.Scalars(tag)}.items())
        for tag in events.Tags()["scalars"]
    }


def _is_readable(path: Path) -> bool:
    """Whether a file is a regular one without a record of a length that no record has; TensorBoard asks neither."""
    try:
        with open_regular(path) as file:
            while len(head := file.read(_HEAD)) == _HEAD:
                length = int.from_bytes(head[:8], "little")
                if not 0 < length <= _MAX_RECORD:
                    return length == 0  # zeros, which a crash may leave: there TensorBoard stops
                file.seek(length + _TAIL, os.SEEK_CUR)
    except OSError:
        return False
    return True


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> Points:
    """At most so many points: means of as many neighbours as that takes."""
    if len(points) <= most:
        return list(points)
    group = -(-len(points) // most)
    chunks = [points[start : start + group] for start in range(0, len(points), group)]
    return [(sum(x for x, _ in chunk) / len(chunk), sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]
