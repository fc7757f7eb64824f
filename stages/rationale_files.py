"""The rationale files and the metrics of the teacher stage: exports of the label store, in the order of the posts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from mulcot.files import write_atomic
from mulcot.teachers.settled import Conclusion, Settled
from mulcot.teachers.store import LabelStore
from mulcot.teachers.store_summary import SplitCounting, SplitCounts, settled_with_tokens
from mulcot.types import SPLITS, InputError, Post, Rationale, RationaleRecord
from stages.outcomes import Outcome


def settled_row(outcome: Outcome, split: str, position: int, model: str) -> Settled:
    """What the store keeps of a dialogue beside its replies."""
    record = outcome.record
    return Settled(
        split=split,
        position=position,
        sample=outcome.sample,
        post_id=outcome.post.id,
        gold=outcome.post.label,
        first_prediction=outcome.first_prediction,
        source=None if record is None else record.source,
        failure=outcome.failure,
        reason=outcome.reason,
        model=model,
        prompt_hash=outcome.prompt_hash,
        asks=tuple((ask.key, ask.attempt, ask.is_new) for ask in outcome.asks),
        imported=record.to_json() if record is not None and outcome.is_imported else None,
    )


def replayed_row(found: Conclusion, post: Post, split: str, position: int) -> Settled:
    """The same of a dialogue that an earlier run led."""
    return Settled(
        split=split,
        position=position,
        sample=0,
        post_id=post.id,
        gold=post.label,
        first_prediction=found.first_prediction,
        source=found.source,
        failure=None,
        reason="",
        model=found.model,
        prompt_hash=found.prompt_hash,
        asks=tuple((key, attempt, False) for key, attempt in found.asks),
    )


def write_rationale_files(folder: Path, store: LabelStore, splits: Sequence[str]) -> dict[str, SplitCounts]:
    """Writes `rationales-<split>.jsonl` and `rejects-<split>.jsonl` for every split, from the store alone.

    A line of the rejects holds `post_id`, `failure` (the kind), `reason` (in words) and `reply` (the last one, as it
    was written). Each file is replaced as a whole or not at all.

    Returns:
        What `split_counts` says, from the same reading of the store.

    Raises:
        InputError: a split is none that there is, and so no part of a file's name.
    """
    for split in splits:
        if split not in SPLITS:
            raise InputError(f"{folder}: there is no split {split!r}; rationale files are of {', '.join(SPLITS)}")
    counting = SplitCounting()
    accepted: dict[str, list[str]] = {split: [] for split in splits}
    rejected: dict[str, list[str]] = {split: [] for split in splits}
    for rows, tokens in settled_with_tokens(store):
        rationales = store.accepted(
            {row.asks[-1][:2]: row.post_id for row in rows if row.failure is None and row.imported is None}
        )
        for row in rows:
            counting.add(row, tokens)
            if row.split not in accepted:
                continue
            if row.failure is None:
                accepted[row.split].append(row.imported or _record(store, row, rationales, tokens).to_json())
            else:
                rejected[row.split].append(_reject(store, row))
    for split in splits:
        write_atomic(folder / f"rationales-{split}.jsonl", _lines(accepted[split]))
        write_atomic(folder / f"rejects-{split}.jsonl", _lines(rejected[split]))
    return counting.splits()


def write_metrics(folder: Path, found: Mapping[str, SplitCounts], splits: Sequence[str]) -> None:
    """Writes `metrics.json` over all splits; see `SplitCounts`."""
    counts = {split: asdict(found.get(split, SplitCounts())) for split in splits}
    metrics = {"kind": "teacher", "title": "teacher", "splits": counts}
    write_atomic(folder / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")


def _record(
    store: LabelStore,
    row: Settled,
    rationales: Mapping[tuple[str, int], Rationale],
    tokens_of: Mapping[tuple[str, int], tuple[int, int]],
) -> RationaleRecord:
    rationale = rationales.get(row.asks[-1][:2])
    if rationale is None or row.source is None:
        raise InputError(
            f"{store.path}: the label store is damaged: table accepted lacks the rationale of post {row.post_id!r}, "
            "which is settled: move the store away, or use another stage folder"
        )
    tokens = [tokens_of[key, attempt] for key, attempt, _ in row.asks]
    return RationaleRecord(
        post_id=row.post_id,
        rationale=rationale,
        source=row.source,
        model=row.model,
        prompt_hash=row.prompt_hash,
        attempts=len(row.asks),
        prompt_tokens=sum(read for read, _ in tokens),
        completion_tokens=sum(written for _, written in tokens),
    )


def _reject(store: LabelStore, row: Settled) -> str:
    replies = (store.written(key, attempt) for key, attempt, _ in reversed(row.asks))
    values = {
        "post_id": row.post_id,
        "failure": row.failure,
        "reason": row.reason,
        "reply": next((reply for reply in replies if reply is not None), ""),
    }
    return json.dumps(values, ensure_ascii=False)


def _lines(lines: Sequence[str]) -> str:
    return "".join(line + "\n" for line in lines)
