"""Posts as token ids: computed once, kept in flat arrays or mapped from the files that a conversion made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules.post_table import PostTable, unaltered
from mulcot.files import refuse_link
from mulcot.images import upright_size
from mulcot.rows import PlaceOf, RowEncoder, TextRow, common_length, load_error
from mulcot.types import TASKS, InputError, Post, StoredPicture, Task

Ids = Sequence[int]
Size = tuple[int, int]


def encoder_key(encoder: RowEncoder) -> str:
    """A name for what token ids depend on beside the posts: equal keys mean equal tokens."""
    return hashlib.sha256(json.dumps(encoder.fingerprint(), sort_keys=True).encode()).hexdigest()[:16]


class Ragged:
    """Sequences of token ids of different lengths, one after another in one array.

    Args:
        values: All ids, `[sum of lengths]`, int32.
        offsets: Where each sequence begins, and where the last one ends, `[sequences + 1]`, int64.
    """

    def __init__(self, values: NDArray[np.int32], offsets: NDArray[np.int64]) -> None:
        self.values = values
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[int, ...]:
        return tuple(self.values[self.offsets[index] : self.offsets[index + 1]].tolist())

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The length of every sequence, `[sequences]`."""
        return np.diff(self.offsets)

    def first(self, count: int | None) -> Ragged:
        """The first so many sequences; None for all."""
        return self if count is None else Ragged(self.values, self.offsets[: count + 1])

    @classmethod
    def of(cls, sequences: Iterable[Ids]) -> Ragged:
        """Sequences put one after another."""
        parts = [np.asarray(sequence, dtype=np.int32) for sequence in sequences]
        offsets = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        return cls(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32), offsets)


class EncodedPosts(Sequence[Post]):
    """Posts with the token ids of everything between picture and response.

    Args:
        posts: The posts.
        encoder: Made the ids.
        tails: For each task the prefix behind the picture, post by post.
        head_tokens: Tokens of every post's picture and the text before it, `[posts]`. They differ between posts only as
            far as the pictures' sizes do.
    """

    def __init__(
        self,
        posts: Sequence[Post],
        encoder: RowEncoder,
        tails: Mapping[Task, Ragged],
        head_tokens: NDArray[np.int32],
    ) -> None:
        self.posts = posts
        self.encoder = encoder
        self.tails = tails
        self.head_tokens = head_tokens

    @classmethod
    def encode(
        cls,
        posts: Sequence[Post],
        encoder: RowEncoder,
        tasks: Sequence[Task],
        sizes: Sequence[Size] | None = None,
        place_of: PlaceOf | None = None,
    ) -> EncodedPosts:
        """Tokenises the posts.

        Args:
            posts: The posts.
            encoder: Makes the ids.
            tasks: The tasks whose prompts are wanted.
            sizes: Width and height of every post's upright picture; None takes them from a converted table, else from
                the header of every picture.
            place_of: See `RowCollator`.

        Raises:
            InputError: A picture's header cannot be read.
        """
        tails = {task: Ragged.of(encoder.tail(post, task) for post in posts) for task in tasks}
        known = _sizes(posts, place_of) if sizes is None else sizes
        heads = [encoder.head_tokens(post.setting, *size) for post, size in zip(posts, known, strict=True)]
        return cls(posts, encoder, tails, np.array(heads, dtype=np.int32))

    @classmethod
    def open(cls, posts: Sequence[Post], encoder: RowEncoder, folder: Path, tasks: Sequence[Task]) -> EncodedPosts:
        """Maps what `write_encoded` wrote."""
        tails = {}
        for task in tasks:
            values = np.load(folder / f"{task}.ids.npy", mmap_mode="r")
            tails[task] = Ragged(values, np.load(folder / f"{task}.offsets.npy", mmap_mode="r")).first(len(posts))
        return cls(posts, encoder, tails, np.load(folder / "head_tokens.npy", mmap_mode="r")[: len(posts)])

    def __len__(self) -> int:
        return len(self.posts)

    def __getitem__(self, index: int) -> Post:  # type: ignore[override]
        return self.posts[index]

    def row(self, post: Post, index: int, task: Task, response_ids: tuple[int, ...] = ()) -> TextRow:
        """The row of the post at `index`, which is given so that its rows share one."""
        return TextRow(post, task, self.encoder.head_text(post.setting, task), self.tails[task][index], response_ids)

    def branch_tokens(self, task: Task) -> int:
        """Tokens of a task's prompt behind what the prompts of all tasks begin with, as the first post has them.

        It is what the prompt says of the reply's form, the same for every post.
        """
        if not len(self):
            return 0
        first, *others = (self.tails[each][0] for each in (task, *(name for name in self.tails if name != task)))
        return len(first) - min((common_length(first, other) for other in others), default=0)

    def lengths(self, task: Task) -> NDArray[np.int64]:
        """Tokens of every post's prefix, `[posts]`, its picture's among them."""
        return self.tails[task].lengths + self.head_tokens


def _sizes(posts: Sequence[Post], place_of: PlaceOf | None) -> list[Size]:
    """Width and height of every post's upright picture; one that several posts share is looked at once."""
    posts = unaltered(posts)  # a picture that is greyed keeps its size
    if isinstance(posts, PostTable):
        return posts.picture_sizes()
    known: dict[Path | StoredPicture, Size] = {}
    for post in posts:
        if post.image not in known:
            try:
                known[post.image] = upright_size(post.image)
            except InputError as error:
                raise load_error(post, error, place_of) from error
    return [known[post.image] for post in posts]


def write_encoded(folder: Path, shards: Sequence[Path]) -> None:
    """Puts the shards that `write_shard` wrote together as files that can be mapped into memory.

    Args:
        folder: Where the files go; it exists.
        shards: Shards in order.
    """
    for task in TASKS:
        lengths = np.concatenate([np.diff(_load(shard, f"{task}.offsets")) for shard in shards])
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        np.save(folder / f"{task}.offsets.npy", offsets)
        total = int(offsets[-1])
        values = np.lib.format.open_memmap(folder / f"{task}.ids.npy", mode="w+", dtype=np.int32, shape=(total,))
        start = 0
        for part in (_load(shard, f"{task}.ids") for shard in shards):
            values[start : start + len(part)] = part
            start += len(part)
        values.flush()
    np.save(folder / "head_tokens.npy", np.concatenate([_load(shard, "head_tokens") for shard in shards]))


def _load(shard: Path, name: str) -> NDArray[np.int64]:
    with np.load(shard, allow_pickle=False) as arrays:
        return arrays[name]


def write_shard(path: Path, encoded: EncodedPosts) -> None:
    """Writes the tokens of some posts, for `write_encoded` to put together."""
    arrays: dict[str, Any] = {}
    for task in TASKS:
        arrays |= {f"{task}.ids": encoded.tails[task].values, f"{task}.offsets": encoded.tails[task].offsets}
    with refuse_link(path).open("wb") as file:
        np.savez(file, head_tokens=encoded.head_tokens, **arrays)
