"""Rationale files: what the teacher's and the augmenting stage export and the fitting stages learn from."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final, get_args

from data_modules.readers.base import check_label_set, filled, read_lines
from data_modules.readers.json_files import as_object, json_line
from data_modules.readers.row_log import Places, Row, RowError, RowLog, one_line, shown
from mulcot.prompts import PROMPTS, PromptUse
from mulcot.types import RATIONALE_KEYS, MissingInputError, Post, RationaleRecord, Source

_SOURCES: Final[tuple[str, ...]] = get_args(Source)
_TEXTS: Final = ("post_id", "source", "model", "prompt_hash")
_COUNTS: Final = {"attempts": 1, "prompt_tokens": 0, "completion_tokens": 0}
"""The counts of a record, which may be left out, and the least that each can be."""


def iterate_rationales(
    paths: Sequence[Path],
    posts: Mapping[str, Post],
    labels: Sequence[str],
    log: RowLog,
    other_prompts: bool = False,
) -> Iterator[RationaleRecord]:
    """The rationales of several files one by one, in the order of paths and lines; wrong lines go to `log`.

    Args:
        paths: JSON Lines files, one `RationaleRecord` a line.
        posts: The posts that the rationales may explain, by id.
        labels: The labels that a Prediction may be.
        log: Where wrong lines go.
        other_prompts: Whether rationales may answer other prompts than those of this version of mulcot.

    Raises:
        MissingInputError: A file is not there.
        InputError: A line is no record, explains an unknown post, contradicts the post's gold label, answers another
            prompt, or repeats a rationale that the post already has; and `log` does not skip it.
    """
    check_label_set(labels)
    seen: Places[bytes] = Places()
    for path in paths:
        if not Path(path).is_file():
            raise MissingInputError(
                f"{one_line(path)}: there is no such rationale file; `mulcot predict --config teacher.yaml` writes the "
                "teacher's, `mulcot predict --config augment.yaml` the assistant's"
            )
        for row, line in read_lines(path):
            try:
                record = read_record(row, json_line(row, line))
                _check_against_post(row, record, posts, labels)
                if not other_prompts:
                    _check_prompt(row, record, posts[record.post_id])
                _check_new(row, record, seen)
            except RowError as error:
                log.add(error)
                continue
            yield record


def read_rationales(
    paths: Sequence[Path],
    posts: Mapping[str, Post],
    labels: Sequence[str],
    log: RowLog | None = None,
    other_prompts: bool = False,
) -> dict[str, list[RationaleRecord]]:
    """The rationales of several files, by post id; see `iterate_rationales`."""
    records: dict[str, list[RationaleRecord]] = {}
    for record in iterate_rationales(paths, posts, labels, log or RowLog(), other_prompts):
        records.setdefault(record.post_id, []).append(record)
    return records


class PostsById(Mapping[str, Post]):
    """The posts of a sequence by their ids, without holding the posts.

    Args:
        posts: The posts.
        ids: Their ids, in the same order.
    """

    def __init__(self, posts: Sequence[Post], ids: Sequence[str]) -> None:
        """Number the ids."""
        self._posts = posts
        self.position = {post_id: number for number, post_id in enumerate(ids)}
        """Where each post stands."""

    def __getitem__(self, post_id: str) -> Post:
        return self._posts[self.position[post_id]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.position)

    def __len__(self) -> int:
        return len(self.position)


def read_record(row: Row, values: dict[str, object]) -> RationaleRecord:
    """One line as a record, every field of the right kind."""
    known = [field.name for field in fields(RationaleRecord)]
    _refuse_unknown(row, values, known)
    for field in _TEXTS:
        filled(row, field, values.get(field))
    if values["source"] not in _SOURCES:
        choices = ", ".join(map(repr, _SOURCES))
        raise row.error("source", f"unknown source {shown(values['source'])}", f"use one of {choices}")
    for field, least in _COUNTS.items():
        count = values.get(field, least)
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise row.error(field, f"{shown(count)} is no count", f"write a whole number from {least} up")
    if "rationale" not in values:
        raise row.error("rationale", "it is missing", f"write an object with {', '.join(RATIONALE_KEYS)}")
    rationale = as_object(row, values["rationale"])
    _refuse_unknown(row, rationale, list(RATIONALE_KEYS))
    for field in RATIONALE_KEYS:
        filled(row, field, rationale.get(field))
    return RationaleRecord.from_dict(values)


def _refuse_unknown(row: Row, values: Mapping[str, object], known: Sequence[str]) -> None:
    """An unknown key is a misspelt one or comes from another version; leaving it out could lose what it meant."""
    for key in values:
        if key not in known:
            raise RowError(row, None, f"unknown key {shown(key)}", f"the keys are {', '.join(known)}")


def _check_against_post(row: Row, record: RationaleRecord, posts: Mapping[str, Post], labels: Sequence[str]) -> None:
    """A rationale must explain a post that is there, and must not teach another label than the post's."""
    if record.post_id not in posts:
        problem = f"there is no post {shown(record.post_id)} in the data"
        raise row.error("post_id", problem, "use the data that the rationale file was made from")
    prediction, gold = record.rationale.prediction, posts[record.post_id].label
    if prediction not in labels:
        choices = ", ".join(map(repr, labels))
        raise row.error("Prediction", f"{shown(prediction)} is no label of the data set", f"use one of {choices}")
    if gold is not None and prediction != gold:
        problem = f"{prediction!r} contradicts the gold label {gold!r} of post {shown(record.post_id)}"
        raise row.error("Prediction", problem, "take the line out, or label the data again")


def _check_prompt(row: Row, record: RationaleRecord, post: Post) -> None:
    """A rationale must answer a prompt as it reads today: what another one asked for may be something else."""
    teacher: tuple[PromptUse, ...] = ("teacher_predict", "teacher_explain")
    uses: tuple[PromptUse, ...] = ("reasoning",) if record.source == "assistant" else teacher
    hashes = [PROMPTS[post.setting, use].hash for use in uses]
    if record.prompt_hash not in hashes:
        problem = f"{shown(record.prompt_hash)} is another version of the prompt than {' or '.join(hashes)}"
        remedy = "write the rationales again, or accept them with data.init_args.other_prompts=true"
        raise row.error("prompt_hash", problem, remedy)


def _check_new(row: Row, record: RationaleRecord, seen: Places[bytes]) -> None:
    """A rationale that stands twice would count twice."""
    key = hashlib.sha256(f"{record.post_id}\0{record.rationale.to_json()}".encode()).digest()[:16]
    first = seen.note(key, row)
    if first is not None:
        problem = f"post {shown(record.post_id)} has the same rationale at {first}"
        raise row.error("rationale", problem, "take one of the two lines out, or name the file once")
