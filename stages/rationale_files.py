"""The files of the teacher stage: a pure function of how the dialogues ended and of the order of the posts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mulcot.files import write_atomic
from stages.dialogue import Outcome


def write_rationale_files(folder: Path, splits: Mapping[str, Sequence[Outcome]]) -> None:
    """Writes `rationales-<split>.jsonl`, `rejects-<split>.jsonl` for every split, and `metrics.json` over all.

    A line of the rejects holds `post_id`, `failure` (the kind), `reason` (in words) and `reply` (the last one, as it
    was written). Each file is replaced as a whole or not at all.
    """
    for split, outcomes in splits.items():
        accepted = [outcome.record.to_json() for outcome in outcomes if outcome.record is not None]
        rejected = [_reject(outcome) for outcome in outcomes if outcome.record is None]
        write_atomic(folder / f"rationales-{split}.jsonl", _lines(accepted))
        write_atomic(folder / f"rejects-{split}.jsonl", _lines(rejected))
    counts = {split: summarise(outcomes) for split, outcomes in splits.items()}
    metrics = {"kind": "teacher", "title": "teacher", "splits": counts}
    write_atomic(folder / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts of one split.

    Returns:
        `posts`; `accepted_predicted` and `accepted_explained`; `accepted_unlabelled`, how many of the predicted ones
        rest on the teacher's word alone; `failed`, by kind. `requests` were sent by this run, `replayed` are answers
        that were already there. `prompt_tokens` and `completion_tokens` are those of all replies that the split rests
        on, of this run or an earlier one, each reply once. `teacher_accuracy` is the share of right labels among the
        posts with a gold label for which the teacher gave a valid label by itself; None when there are none.
    """
    records = [(outcome.post, outcome.record) for outcome in outcomes if outcome.record is not None]
    sources = Counter(record.source for _, record in records)
    asks = [ask for outcome in outcomes for ask in outcome.asks]
    replies = {(ask.key, ask.attempt): ask for ask in asks}.values()
    judged = [outcome for outcome in outcomes if outcome.post.label and outcome.first_prediction]
    right = sum(outcome.first_prediction == outcome.post.label for outcome in judged)
    return {
        "posts": len(outcomes),
        "accepted_predicted": sources["teacher-predicted"],
        "accepted_explained": sources["teacher-explained"],
        "accepted_unlabelled": sum(post.label is None for post, _ in records),
        "failed": dict(sorted(Counter(outcome.failure for outcome in outcomes if outcome.failure).items())),
        "requests": sum(ask.is_new for ask in asks),
        "replayed": sum(not ask.is_new for ask in asks),
        "prompt_tokens": sum(ask.prompt_tokens for ask in replies),
        "completion_tokens": sum(ask.completion_tokens for ask in replies),
        "teacher_accuracy": right / len(judged) if judged else None,
    }


def _reject(outcome: Outcome) -> str:
    values = {
        "post_id": outcome.post.id,
        "failure": outcome.failure,
        "reason": outcome.reason,
        "reply": outcome.last_reply,
    }
    return json.dumps(values, ensure_ascii=False)


def _lines(lines: Sequence[str]) -> str:
    return "".join(line + "\n" for line in lines)
