"""`mulcot eval`: all metrics on files of predictions and references."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mulcot.eval_display import print_evaluation
from mulcot.eval_files import EvalFile, Known, Said, label_set, read_eval_file, read_known, read_said
from mulcot.files import write_atomic
from mulcot.metrics import ClassificationReport, ReasoningReport
from mulcot.metrics.resources import UnavailableError, load_encoder, load_wordnet
from mulcot.metrics.slices import slice_scores
from mulcot.types import DEFAULT_LABELS, Answer, InputError

NAMED: Final = 10
"""Posts that are named at most where there are many."""
SKIPPED: Final = "left out by --skip"
OPTIONAL: Final = ("meteor", "sim")
"""The metrics that need more than the texts."""


@dataclass(frozen=True, slots=True)
class _Joined:
    """Two files, joined by the ids of the posts."""

    said_file: EvalFile
    known_file: EvalFile
    labels: tuple[str, ...]
    said: dict[str, Said]
    known: dict[str, Known]
    posts: list[str]
    """The posts that are scored, in the order of the references, or of the predictions beside a rationale file."""
    golds: dict[str, str | None]
    """Their gold labels, None where neither file knows it."""
    missing: list[str]
    """Posts of the references without a prediction."""
    surplus: list[str]
    """Posts of the predictions that are left out."""

    @property
    def scored(self) -> list[str]:
        """The posts with a gold label."""
        return [post_id for post_id in self.posts if self.golds[post_id] is not None]


def evaluate(
    predictions: Path,
    references: Path,
    labels: Sequence[str] | None = None,
    *,
    wordnet: Path | None = None,
    encoder: Path | None = None,
    skip: Sequence[str] = (),
) -> dict[str, Any]:
    """Scores the predictions of one file against the references of another, joined by the posts' ids.

    A post without a prediction counts as wrong, and its reply as empty. A prediction for a post that the references do
    not know is left out, except that a rationale file, which need not explain every post, leaves no post out.

    Args:
        predictions: see `mulcot.eval_files`.
        references: see `mulcot.eval_files`.
        labels: the label set; without it the one of the predictions' probabilities, else positive, neutral, negative.
        wordnet: a folder with WordNet's files for METEOR; without it the installed package's.
        encoder: a sentence-transformers folder for Sim; without it the installed package's.
        skip: the metrics not to compute, of `meteor` and `sim`.

    Returns:
        `predictions`, `references` (`path`, `kind`, `rows`), `labels`, `posts`, `missing` and `surplus` (`count` and
        the first `posts`), `disagreements` (likewise: label and gold label differ, missing ones counted in), `refused`
        (likewise: replies that are no rationale, with the reasons), `classification` (what `ClassificationReport`
        computes, None where no gold label is known), `reasoning` (what `ReasoningReport` computes, None where no reply
        was written), `slices` (what `slice_scores` gives, None but for a stage's predictions) and `notes`.

    Raises:
        MissingInputError: a file is not there.
        InputError: a file is wrong; the message names file, row and field.
    """
    joined = _joined(predictions, references, labels)
    classification = ClassificationReport(joined.labels)
    for post_id in joined.scored:
        said = joined.said.get(post_id)
        label, probabilities = (said.label, said.answer.probabilities or None) if said else (None, None)
        classification.update([label], [joined.golds[post_id] or ""], [probabilities])
    refused = {post_id: said.answer.refusal for post_id, said in joined.said.items() if said.answer.refusal}
    return {
        "predictions": _described(joined.said_file),
        "references": _described(joined.known_file),
        "labels": list(joined.labels),
        "posts": len(joined.posts),
        "missing": _counted(joined.missing),
        "surplus": _counted(joined.surplus),
        "disagreements": _counted([post_id for post_id in joined.scored if not _is_right(joined, post_id)]),
        "refused": _counted(list(refused)) | {"reasons": [refused[post_id] for post_id in list(refused)[:NAMED]]},
        "classification": classification.compute() if joined.scored else None,
        "reasoning": _reasoning(joined, wordnet, encoder, skip),
        "slices": _slices(joined),
        "notes": _notes(joined),
    }


def main_eval(argv: Sequence[str]) -> int:
    """`mulcot eval` with these arguments.

    Args:
        argv: what follows `mulcot eval`.

    Returns:
        The exit code 0.

    Raises:
        InputError: as in `evaluate`, or the numbers cannot be written.
        SystemExit: `--help` was asked for, or an option is missing or unknown.
    """
    parser = argparse.ArgumentParser(
        prog="mulcot eval", description="All metrics of predictions against references.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--predictions", type=Path, required=True, metavar="FILE",
        help="a stage's predictions.jsonl, a rationale file, replies (id, cot or reply), or labels")  # fmt: skip
    add("--references", type=Path, required=True, metavar="FILE",
        help="a rationale file, or gold labels (id, label or gold), with replies (cot) or without")  # fmt: skip
    add("--labels", nargs="+", metavar="LABEL", help="the label set, where it is not positive, neutral, negative")
    add("--json", type=Path, metavar="FILE", help="where all numbers are written")
    add("--skip", nargs="+", choices=OPTIONAL, default=[], help="metrics to leave out; they take the most time")
    add("--wordnet", type=Path, metavar="FOLDER", help="WordNet's files for METEOR, instead of the installed ones")
    add("--encoder", type=Path, metavar="FOLDER", help="a sentence-transformers model for Sim, instead of MiniLM")
    given = parser.parse_args(argv)
    result = evaluate(
        given.predictions,
        given.references,
        given.labels,
        wordnet=given.wordnet,
        encoder=given.encoder,
        skip=given.skip,
    )
    if given.json is not None:
        try:
            write_atomic(given.json, json.dumps(result, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
        except OSError as error:
            raise InputError(f"{given.json}: the numbers cannot be written there ({error.strerror})") from error
    print_evaluation(result)
    return 0


def _joined(predictions: Path, references: Path, labels: Sequence[str] | None) -> _Joined:
    said_file, known_file = read_eval_file(predictions), read_eval_file(references)
    names = label_set(labels, said_file, DEFAULT_LABELS)
    said, known = read_said(said_file, names), read_known(known_file, names)
    missing = [post_id for post_id in known if post_id not in said]
    if len(missing) == len(known):
        raise InputError(
            f"{said_file.name}: none of its posts ({_some(list(said))}) is in {known_file.name} "
            f"({_some(list(known))}); give the references of the same posts"
        )
    explains = known_file.kind == "rationale file"
    posts = [*said, *missing] if explains else list(known)
    surplus = [] if explains else [post_id for post_id in said if post_id not in known]
    golds = {post_id: _gold(post_id, said.get(post_id), known.get(post_id)) for post_id in posts}
    return _Joined(said_file, known_file, names, said, known, posts, golds, missing, surplus)


def _gold(post_id: str, said: Said | None, known: Known | None) -> str | None:
    mine, other = said.gold if said else None, known.gold if known else None
    if said and known and None not in (mine, other) and mine != other:
        raise InputError(
            f"{said.row}: the gold label of post {post_id!r} is {mine!r} here and {other!r} at {known.row}; give the "
            "references of the same data"
        )
    return other or mine


def _is_right(joined: _Joined, post_id: str) -> bool:
    said = joined.said.get(post_id)
    return said is not None and said.label == joined.golds[post_id]


def _reasoning(
    joined: _Joined, wordnet: Path | None, encoder: Path | None, skip: Sequence[str]
) -> dict[str, Any] | None:
    """The rationales' report, None where no reply was asked for."""
    if not any(said.answer.reply for said in joined.said.values()):
        return None
    found: dict[str, Any] = {"meteor": None, "sim": None}
    unavailable = dict.fromkeys(skip, SKIPPED)
    compared = any(known.reference is not None for known in joined.known.values())
    for name, load, folder in (("meteor", load_wordnet, wordnet), ("sim", load_encoder, encoder)):
        if name in unavailable:
            continue
        if not compared:
            unavailable[name] = f"{joined.known_file.name} holds no reference rationale"
            continue
        try:
            found[name] = load(folder)
        except UnavailableError as error:
            unavailable[name] = str(error)
    report = ReasoningReport(joined.labels, found["meteor"], found["sim"], unavailable)
    for post_id in joined.posts:
        said, known = joined.said.get(post_id), joined.known.get(post_id)
        answer = said.answer if said else Answer(post_id, "", {}, None, "", "there is no prediction")
        report.update([answer], [known.reference if known else None], [joined.golds[post_id]])
    return report.compute()


def _slices(joined: _Joined) -> dict[str, Any] | None:
    """The groups of posts, of the predictions that are there; only a stage's say what groups a post is in."""
    predictions = [
        replace(said.prediction, gold=joined.golds[post_id])
        for post_id, said in joined.said.items()
        if said.prediction is not None and post_id in joined.golds
    ]
    references = {p: known.reference for p, known in joined.known.items() if known.reference is not None}
    return slice_scores(predictions, references, joined.labels) if predictions else None


def _described(file: EvalFile) -> dict[str, Any]:
    return {"path": str(file.path), "kind": file.kind, "rows": len(file.rows)}


def _counted(posts: Sequence[str]) -> dict[str, Any]:
    return {"count": len(posts), "posts": list(posts[:NAMED])}


def _notes(joined: _Joined) -> list[str]:
    """What a reader must know before believing the numbers."""
    notes = []
    said, known = joined.said_file.name, joined.known_file.name
    if joined.missing:
        notes.append(
            f"{len(joined.missing):,} of {len(joined.known):,} posts of {known} have no prediction and count as wrong: "
            f"{_some(joined.missing)}"
        )
    if joined.surplus:
        notes.append(
            f"{len(joined.surplus):,} posts of {said} are not in {known} and left out: {_some(joined.surplus)}"
        )
    unknown = [post_id for post_id in joined.posts if joined.golds[post_id] is None]
    if unknown:
        notes.append(f"no gold label is known of {len(unknown):,} of {len(joined.posts):,} posts: {_some(unknown)}")
    classes = {joined.golds[post_id] for post_id in joined.scored}
    if len(classes) == 1:
        notes.append(f"every gold label is {classes.pop()!r}: F1 says no more than the accuracy")
    refused = [post_id for post_id, one in joined.known.items() if _is_refused(joined.known_file, one)]
    if refused:
        notes.append(
            f"replies of {known} that are no rationale, and so no reference: {len(refused):,} ({_some(refused)})"
        )
    if joined.said_file.path.samefile(joined.known_file.path) and len(refused) < len(joined.known):
        notes.append("predictions and references are one file: every reply that is a reference is compared with itself")
    return notes


def _is_refused(file: EvalFile, known: Known) -> bool:
    return file.kind == "replies with gold labels" and known.reference is None


def _some(posts: Sequence[str]) -> str:
    return ", ".join(posts[:NAMED]) + (", ..." if len(posts) > NAMED else "")
