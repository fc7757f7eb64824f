"""What the teacher stage has to know of the run's data loaders beside their batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from lightning.pytorch import Trainer

from mulcot.types import SPLITS, InputError, Post


def split_names(trainer: Trainer) -> list[str]:
    """The names of the data loaders, in order.

    Raises:
        InputError: The data module names too few splits.
    """
    names = list(getattr(getattr(trainer, "datamodule", None), "predict_splits", SPLITS))
    loaders = len(trainer.num_predict_batches)
    if loaders > len(names):
        raise InputError(f"there are {loaders} loaders of posts but only {len(names)} split names: {', '.join(names)}")
    return names[:loaders]


def posts_of(trainer: Trainer) -> Iterator[Post]:
    """The posts of all batches that this process will get, from loaders of their own: the run's are under way.

    Raises:
        InputError: There is no data module to ask for them.
    """
    data = getattr(trainer, "datamodule", None)
    if data is None:
        raise InputError("a teacher that costs money needs a data module, for an estimate of what it will cost")
    given = data.predict_dataloader()
    loaders = given if isinstance(given, list | tuple) else [given]
    for loader, batches in zip(loaders, trainer.num_predict_batches, strict=True):
        for batch in islice(loader, None if batches == float("inf") else int(batches)):
            yield from batch


def expected_posts(trainer: Trainer, splits: Sequence[str]) -> int | None:
    """How many posts this process will get, where the data module can say."""
    posts = getattr(getattr(trainer, "datamodule", None), "posts", None)
    if not callable(posts):
        return None
    return -(-sum(len(posts(split)) for split in splits) // trainer.world_size)
