"""Finding a Hugging Face data set on disk or on the hub, and saying in one line why it cannot be had."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from data_modules.readers.row_log import one_line
from mulcot.types import InputError

if TYPE_CHECKING:
    from datasets import Dataset

_HUB_NAME: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")
_REMEDY: Final = "give a folder that datasets.save_to_disk wrote"


def load_splits(path: str, name: str | None = None, revision: str | None = None) -> dict[str, Dataset]:
    """A data set's splits by their names, memory-mapped; a single `Dataset` without a split's name is `train`.

    Args:
        path: A folder that `save_to_disk` wrote, or a name on the hub.
        name: The configuration, for the hub.
        revision: The branch, tag or commit, for the hub.

    Raises:
        InputError: There is no such data set, it is damaged, or the hub cannot be reached.
    """
    from datasets import Dataset

    if os.path.isdir(path):
        if name is not None or revision is not None:
            raise InputError(f"{one_line(Path(path))}: name and revision are for the hub; leave them out for a folder")
        loaded = _from_disk(path)
    else:
        loaded = _from_hub(path, name, revision)
    return {str(loaded.split or "train"): loaded} if isinstance(loaded, Dataset) else dict(loaded)


def is_single(path: str) -> bool:
    """Whether a folder holds one `Dataset` without splits."""
    return all(os.path.isfile(os.path.join(path, name)) for name in ("state.json", "dataset_info.json"))


def saved_files(folder: Path) -> list[Path]:
    """The files that `save_to_disk` wrote."""
    found = [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file()]
    # Beside them `datasets` keeps results of `map` and `filter`, called cache-....arrow.
    return sorted(path for path in found if path.suffix in (".json", ".arrow") and not path.name.startswith("cache-"))


def was_downloaded(name: str) -> bool:
    """Whether a path leads to a file that the hub's library downloaded, links followed."""
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub.constants import HF_HUB_CACHE

    real = Path(os.path.realpath(name))
    caches = (Path(os.path.realpath(folder)) for folder in (HF_DATASETS_CACHE, HF_HUB_CACHE))
    return os.path.isabs(name) and real.is_file() and any(real.is_relative_to(folder) for folder in caches)


def _from_disk(path: str) -> Any:
    import datasets

    start = one_line(Path(path))
    if not is_single(path) and not os.path.isfile(os.path.join(path, "dataset_dict.json")):
        raise InputError(f"{start}: it holds no saved data set; {_REMEDY}")
    try:
        with _no_progress_bars():
            return datasets.load_from_disk(path, keep_in_memory=False)
    except IndexError as error:
        # datasets 5.2 writes a split without rows as no file, and fails on that when it reads it.
        states = [state for pattern in ("state.json", "*/state.json") for state in Path(path).glob(pattern)]
        empty = [state for state in states if '"_data_files": []' in state.read_text(errors="replace")]
        place = one_line(empty[0].parent) if empty else start
        raise InputError(f"{place}: it holds no posts; save it with at least one, or leave this split out") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        # These are what damaged JSON and Arrow files raise.
        raise InputError(f"{start}: it cannot be loaded ({_reason(error)}); save it again") from error


def _from_hub(path: str, name: str | None, revision: str | None) -> Any:
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import LocalEntryNotFoundError

    start = one_line(Path(path))
    if not _HUB_NAME.fullmatch(path) or os.path.exists(path):
        raise InputError(f"{start}: there is no such folder, and it is no name on the hub; {_REMEDY}")
    try:
        with _no_progress_bars():
            return datasets.load_dataset(path, name, revision=revision, keep_in_memory=False)
    except DatasetNotFoundError as error:
        problem = f"there is no such folder, nor does the hub show it to you ({_reason(error)})"
        raise InputError(f"{start}: {problem}; {_REMEDY}, or log in to the hub") from error
    except (ConnectionError, LocalEntryNotFoundError) as error:
        problem = "there is no such folder, and the hub cannot be reached to look for it"
        raise InputError(f"{start}: {problem}; {_REMEDY}, or read it where there is a network") from error
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        # A wrong configuration, no data files, a data set that would need its own code.
        raise InputError(f"{start}: the hub's data set cannot be loaded ({_reason(error)}); {_REMEDY}") from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Without the progress bars of `datasets`, which are a setting of the whole process."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    enabled = not are_progress_bars_disabled()
    with warnings.catch_warnings():
        # The library warns where an environment variable asks for the bars; then they stay.
        warnings.simplefilter("ignore")
        disable_progress_bars()
    try:
        yield
    finally:
        if enabled:
            enable_progress_bars()


def _reason(error: Exception) -> str:
    """An error's own words on one line, cut when they are many."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else f"{words[:200]}..."
