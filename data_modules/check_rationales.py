"""The rationales that come with posts: a teacher's raw replies, and rationale files."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from data_modules.check_report import Lengths, RationaleFiles, Replies, Spread, WrongRow
from data_modules.rationales import iterate_rationales
from data_modules.readers.row_log import RowLog
from mulcot.generation import RationaleRefusedError, parse_rationale
from mulcot.types import RATIONALE_KEYS, InputError, Post, Rationale

WHOLE = "whole"
_NOWHERE = Path()


class KnownPosts(dict[str, Post]):
    """The posts of all splits as rationales are checked against them: id, setting and label, without the rest.

    A post's text is empty, and so is its aspect where it has one; it has no picture. An id of two splits stands for
    its first post.

    Args:
        splits: Ids, labels and whether there is an aspect, post by post, of every split.
    """

    def __init__(self, splits: Mapping[str, tuple[Sequence[str], Sequence[str | None], bytearray]]) -> None:
        """Note every post."""
        super().__init__()
        self._ids = {name: ids for name, (ids, _, _) in splits.items()}
        for ids, labels, masc in splits.values():
            for post_id, label, has_aspect in zip(ids, labels, masc, strict=True):
                self.setdefault(post_id, Post(post_id, "", _NOWHERE, "" if has_aspect else None, label))

    def by_split(self, post_ids: Collection[str]) -> dict[str, int]:
        """How many of these posts each split has."""
        return {name: sum(post_id in post_ids for post_id in ids) for name, ids in self._ids.items()}


def check_replies(replies: Mapping[str, str], posts: KnownPosts, labels: Sequence[str]) -> Replies | None:
    """What the replies hold; None when there are none.

    Args:
        replies: As they were written, by post id.
        posts: The posts that can be used.
        labels: The label set.
    """
    if not replies:
        return None
    lengths = _Lengths()
    refused: dict[str, str] = {}
    contradicting: dict[str, dict[str, str]] = {}
    for post_id, reply in replies.items():
        if post_id not in posts:
            continue
        try:
            rationale = parse_rationale(reply, labels)
        except RationaleRefusedError as error:
            refused[post_id] = str(error)
            continue
        lengths.add(rationale)
        gold = posts[post_id].label
        if gold is not None and rationale.prediction != gold:
            contradicting[post_id] = {"label": gold, "prediction": rationale.prediction}
    return Replies(
        given=len(replies),
        parsed=lengths.count,
        refused=refused,
        contradicting=contradicting,
        without_post=sum(post_id not in posts for post_id in replies),
        fields=lengths.by_field(),
    )


def check_files(
    paths: Sequence[Path], posts: KnownPosts, labels: Sequence[str], other_prompts: bool = False
) -> RationaleFiles:
    """What the rationale files hold.

    Args:
        paths: JSON Lines files of rationale records.
        posts: The posts that can be used.
        labels: The label set.
        other_prompts: Whether rationales may answer other prompts than those of this version of mulcot.
    """
    log = RowLog(on_bad_row="skip")
    lengths = _Lengths()
    sources: Counter[str] = Counter()
    per_post: Counter[str] = Counter()
    errors: list[str] = []
    missing = [path for path in paths if not path.is_file()]
    # A missing file, asked for by itself, gives its error without keeping the others from being read.
    for given in (*([path] for path in missing), [path for path in paths if path not in missing]):
        try:
            for record in iterate_rationales(given, posts, labels, log, other_prompts):
                lengths.add(record.rationale)
                sources[record.source] += 1
                per_post[record.post_id] += 1
        except InputError as error:
            errors.append(str(error))
    return RationaleFiles(
        errors=tuple(errors),
        records=lengths.count,
        sources=dict(sources.most_common()),
        posts=posts.by_split(per_post),
        per_post=Spread.of(list(per_post.values())),
        fields=lengths.by_field(),
        wrong_rows=WrongRow.of(log.bad),
    )


class _Lengths:
    """The lengths of rationales, field by field."""

    def __init__(self) -> None:
        names = [key for key in RATIONALE_KEYS if key != "Prediction"]
        self._lengths = {name: (array("q"), array("q")) for name in (*names, "Prediction", WHOLE)}
        self.count = 0

    def add(self, rationale: Rationale) -> None:
        """Measures a rationale."""
        self.count += 1
        texts = {key: getattr(rationale, name) for key, name in RATIONALE_KEYS.items()}
        for name, text in (*texts.items(), (WHOLE, rationale.to_json())):
            characters, words = self._lengths[name]
            characters.append(len(text))
            words.append(len(text.split()))

    def by_field(self) -> dict[str, Lengths]:
        """The spread of each; empty when nothing was measured."""
        return {
            name: Lengths(characters, words)
            for name, measured in self._lengths.items()
            if (characters := Spread.of(measured[0])) and (words := Spread.of(measured[1]))
        }
