"""Whether two models write the same tokens, and how many rows of their heads count, in words, before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from mulcot.types import InputError

_SHOWN: Final = 3
_ROLES: Final = ("bos_token", "eos_token", "pad_token", "unk_token")


def vocabulary_difference(student: Any, assistant: Any) -> str:
    """What differs between two tokenizers of transformers, for the text of an error; empty when ids mean the same.

    It reads like "4 entries against 5: 1 has another id ('owl' is 3 against 4), 1 is the assistant's alone ('elk')".
    Roles of special tokens are told as well, but are no difference by themselves: they do not change what ids mean.

    Args:
        student: the student's tokenizer.
        assistant: the assistant's; the second of two numbers is its.
    """
    mine, theirs = student.get_vocab(), assistant.get_vocab()
    if mine == theirs:
        return ""
    moved = [entry for entry, index in mine.items() if theirs.get(entry, index) != index]
    ids = {entry: f"{entry!r} is {mine[entry]} against {theirs[entry]}" for entry in moved}
    parts = [
        _counted(moved, mine, ids, "has another id", "have another id"),
        *(
            _counted(own.keys() - other.keys(), own, {}, f"is the {owner}'s alone", f"are the {owner}'s alone")
            for owner, own, other in (("student", mine, theirs), ("assistant", theirs, mine))
        ),
        *_special_differences(student, assistant),
    ]
    return f"{len(mine):,} entries against {len(theirs):,}: " + ", ".join(part for part in parts if part)


def entry_rows(tokenizer: Any) -> int:
    """How many rows a head needs for every entry of a tokenizer to have one; entries may leave ids out."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def shared_rows(student_rows: int, assistant_rows: int, tokenizer: Any) -> int:
    """How many rows of both heads count: those of the shorter one.

    Heads of one family are padded to different lengths behind the same entries (Qwen2.5-VL has 152,064 rows at 7B and
    151,936 at 3B for 151,665 entries), and rows behind the shorter head's end stand for nothing in the other.

    Args:
        student_rows: rows of the student's head.
        assistant_rows: rows of the assistant's.
        tokenizer: the one that both write with.

    Raises:
        InputError: a head has no row for some entry, as after a cut.
    """
    for owner, rows in (("student", student_rows), ("assistant", assistant_rows)):
        check_head_rows(rows, tokenizer, owner)
    return min(student_rows, assistant_rows)


def check_head_rows(rows: int, tokenizer: Any, owner: str) -> None:
    """Refuses a head that cannot write all that its tokenizer reads.

    Args:
        rows: rows of the head.
        tokenizer: the model's.
        owner: whose head it is, for the error.

    Raises:
        InputError: there are fewer rows than entries.
    """
    needed = entry_rows(tokenizer)
    if rows < needed:
        lost = {entry: index for entry, index in tokenizer.get_vocab().items() if index >= rows}
        raise InputError(
            f"the head of the {owner} has {rows:,} rows and its tokenizer needs {needed:,}, so that it cannot write "
            f"{_first(lost, lost, {})}: it was cut, or the tokenizer is another model's; take the folder as it was "
            f"published"
        )


def _counted(entries: Iterable[str], order: Mapping[str, int], texts: Mapping[str, str], one: str, many: str) -> str:
    entries = list(entries)
    if not entries:
        return ""
    return f"{len(entries):,} {one if len(entries) == 1 else many} ({_first(entries, order, texts)})"


def _first(entries: Iterable[str], order: Mapping[str, int], texts: Mapping[str, str]) -> str:
    """The first entries by id, spelt with what the tokenizer writes for blanks."""
    ordered = sorted(entries, key=lambda entry: order[entry])
    shown = ", ".join(texts.get(entry, repr(entry)) for entry in ordered[:_SHOWN])
    return shown + (", ..." if len(ordered) > _SHOWN else "")


def _special_differences(student: Any, assistant: Any) -> list[str]:
    roles = [(role, getattr(student, role, None), getattr(assistant, role, None)) for role in _ROLES]
    return [f"{role} is {mine!r} against {theirs!r}" for role, mine, theirs in roles if mine != theirs]
