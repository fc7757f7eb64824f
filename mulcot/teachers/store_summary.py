"""The reconciliation of a label store: what was asked, what came of it and what it cost, from the file alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from rich.console import Console

from mulcot.teachers.limits import Experience, Prices
from mulcot.teachers.settled import Settled
from mulcot.teachers.store import LabelStore
from mulcot.terminal_tables import say, table, words
from mulcot.types import SPLITS, InputError

_PRICES = "prices/"
_LOOK_UP = 400
"""Dialogues whose tokens are looked up together."""


@dataclass
class SplitCounts:
    """How the last run ended for one split."""

    posts: int = 0
    """Posts that were settled."""
    accepted_predicted: int = 0
    """Rationales whose label the teacher found itself."""
    accepted_explained: int = 0
    """Rationales of a label that it was given."""
    accepted_unlabelled: int = 0
    """Of the predicted ones, those that rest on the teacher's word alone."""
    imported: int = 0
    """Of both, those that were brought in from a file."""
    failed: dict[str, int] = field(default_factory=dict)
    """Rationales that could not be had, by kind of failure."""
    requests: int = 0
    """Sent by the last run."""
    replayed: int = 0
    """Answers that were there already."""
    prompt_tokens: int = 0
    """Tokens of all replies that the split rests on, of whatever run, each reply once."""
    completion_tokens: int = 0
    """Likewise."""
    teacher_accuracy: float | None = None
    """Right labels among the posts with a gold label for which the teacher gave a valid one by itself."""


@dataclass
class Reconciliation:
    """A whole store."""

    splits: dict[str, SplitCounts]
    """The last run, by split."""
    ended: bool
    """Whether the last run came to its end."""
    requests: int
    """Sent over all runs."""
    replies: int
    """Read whole over all runs."""
    unknown_outcome: int
    """Sendings of which nobody knows what became: the run ended, or no reply came, after they were sent."""
    open_attempts: int
    """Attempts that will be sent again when their post is asked about."""
    prompt_tokens: int
    """Over all replies."""
    completion_tokens: int
    """Over all replies."""
    usd: float | None
    """What the replies cost; None where prices are not known."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


class SplitCounting:
    """Counts how dialogues ended, split by split."""

    def __init__(self) -> None:
        self._splits: dict[str, SplitCounts] = {}
        self._posts: dict[str, set[int]] = {}
        self._seen: dict[str, set[tuple[str, int]]] = {}
        self._judged: Counter[tuple[str, bool]] = Counter()

    def add(self, row: Settled, tokens: Mapping[tuple[str, int], tuple[int, int]]) -> None:
        """One more, with the tokens of its replies by key and attempt."""
        counts = self._splits.setdefault(row.split, SplitCounts())
        self._posts.setdefault(row.split, set()).add(row.position)
        if row.failure is not None:
            counts.failed[row.failure] = counts.failed.get(row.failure, 0) + 1
        else:
            counts.accepted_predicted += row.source == "teacher-predicted"
            counts.accepted_explained += row.source == "teacher-explained"
            counts.accepted_unlabelled += row.gold is None
            counts.imported += row.imported is not None
        seen = self._seen.setdefault(row.split, set())
        for key, attempt, is_new in row.asks:
            counts.requests += is_new
            counts.replayed += not is_new
            if (key, attempt) not in seen:
                seen.add((key, attempt))
                read, written = tokens[key, attempt]
                counts.prompt_tokens += read
                counts.completion_tokens += written
        if row.gold is not None and row.first_prediction is not None:
            self._judged[row.split, row.first_prediction == row.gold] += 1

    def splits(self) -> dict[str, SplitCounts]:
        """What was counted, by split."""
        for split, counts in self._splits.items():
            counts.posts = len(self._posts[split])
            counts.failed = dict(sorted(counts.failed.items()))
            valid = self._judged[split, True] + self._judged[split, False]
            counts.teacher_accuracy = self._judged[split, True] / valid if valid else None
        return {split: self._splits[split] for split in sorted(self._splits, key=_place)}


def split_counts(store: LabelStore) -> dict[str, SplitCounts]:
    """How the last run ended, split by split."""
    counting = SplitCounting()
    for rows, tokens in settled_with_tokens(store):
        for row in rows:
            counting.add(row, tokens)
    return counting.splits()


def settled_with_tokens(store: LabelStore) -> Iterator[tuple[list[Settled], dict[tuple[str, int], tuple[int, int]]]]:
    """How the dialogues of the last run ended, some at a time, with the tokens of their replies by key and attempt."""
    rows = store.settled()
    while some := list(islice(rows, _LOOK_UP)):
        yield some, store.tokens({(key, attempt) for row in some for key, attempt, _ in row.asks})


def _place(split: str) -> tuple[int, str]:
    return (list(SPLITS).index(split) if split in SPLITS else len(SPLITS)), split


def reconcile(
    store: LabelStore, prices: Prices | None = None, splits: dict[str, SplitCounts] | None = None
) -> Reconciliation:
    """Everything about a store.

    Args:
        store: the store.
        prices: for all tokens; left out, each teacher's prices as its last run noted them.
        splits: what `split_counts` found, where it is known already.
    """
    store.check_attempts()
    requests = replies = unknown = still_open = read = written = 0
    usd: float | None = None
    query = (
        "SELECT model, sum(sent), count(reply), sum(sent - (reply IS NOT NULL OR outcome IS NOT NULL)), "
        "sum(reply IS NULL AND outcome IS NULL), sum(coalesce(prompt_tokens, 0)), sum(coalesce(completion_tokens, 0)) "
        "FROM attempts GROUP BY model"
    )
    for model, sent, answered, lost, waiting, prompt_tokens, completion_tokens in store.read(query):
        requests, replies, unknown = requests + sent, replies + answered, unknown + lost
        still_open, read, written = still_open + waiting, read + prompt_tokens, written + completion_tokens
        price = prices or noted_prices(store, model)
        if price is not None:
            usd = (usd or 0.0) + price.usd(prompt_tokens, completion_tokens)
    if usd is None and prices is not None:
        usd = 0.0
    ended = store.note("ended") == "yes"
    splits = split_counts(store) if splits is None else splits
    return Reconciliation(splits, ended, requests, replies, unknown, still_open, read, written, usd)


def experience(store: LabelStore, model: str) -> Experience:
    """What a store knows of a teacher."""
    query = (
        "SELECT count(DISTINCT CASE WHEN use='predict' THEN key END), count(*), sum(prompt_tokens), "
        "sum(completion_tokens) FROM attempts WHERE reply IS NOT NULL AND model=?"
    )
    (questions, replies, read, written), *_ = store.read(query, model)
    return Experience(questions, replies, read or 0, written or 0)


def spent(store: LabelStore, prices: Prices | None) -> tuple[int, float]:
    """Requests that were sent over all runs, and what their replies cost."""
    store.check_attempts()
    query = "SELECT sum(sent), sum(prompt_tokens), sum(completion_tokens) FROM attempts"
    (sent, read, written), *_ = store.read(query)
    return sent or 0, prices.usd(read or 0, written or 0) if prices else 0.0


def note_prices(store: LabelStore, model: str, prices: Prices) -> None:
    """Keeps a teacher's prices, so that the store alone can say what was spent."""
    store.set_note(_PRICES + model, json.dumps([prices.prompt, prices.completion]))


def noted_prices(store: LabelStore, model: str) -> Prices | None:
    """A teacher's prices as its last run noted them.

    Raises:
        InputError: the note is damaged.
    """
    noted = store.note(_PRICES + model)
    if noted is None:
        return None
    try:
        prompt, completion = json.loads(noted)
        return Prices(float(prompt), float(completion))
    except (ValueError, TypeError) as error:
        raise InputError(f"{store.path}: its note of the prices of {model!r} is damaged; give --prices") from error


def print_reconciliation(found: Reconciliation, out: Console) -> None:
    """Shows it as a table and a few lines."""
    made = table(
        ("split", "left"),
        *((name, "right") for name in ("posts", "predicted", "explained")),
        ("failed", "left"),
        *((name, "right") for name in ("new requests", "label right at once")),
    )
    for name, counts in found.splits.items():
        failed = ", ".join(f"{count:,} {kind}" for kind, count in counts.failed.items()) or "none"
        accuracy = "—" if counts.teacher_accuracy is None else f"{counts.teacher_accuracy:.1%}"
        numbers = (counts.posts, counts.accepted_predicted, counts.accepted_explained)
        cells = (name, *(f"{number:,}" for number in numbers), failed, f"{counts.requests:,}", accuracy)
        made.add_row(*map(words, cells))
    if found.splits:
        out.print(made)
    if not found.ended:
        say(out, "no run over this store has come to its end; the same command goes on")
    imported = sum(counts.imported for counts in found.splits.values())
    if imported:
        say(out, f"brought in from files: {imported:,} rationales")
    money = "" if found.usd is None else f", ${found.usd:,.4f}"
    say(
        out,
        f"over all runs: {found.requests:,} requests, {found.replies:,} replies, {found.prompt_tokens:,} tokens read, "
        f"{found.completion_tokens:,} written{money}",
    )
    if found.unknown_outcome:
        say(
            out,
            f"of unknown outcome: {found.unknown_outcome:,} requests (sent, no reply read; they may have been billed), "
            f"{found.open_attempts:,} of them still without a reply",
        )
