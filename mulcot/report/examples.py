"""Which posts the page shows, chosen by a rule that is written on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from mulcot.predictions import Prediction
from mulcot.report.differences import Piece, differences
from mulcot.report.pictures import PostPictures, Thumbnail
from mulcot.report.run import DISTILLED, Run, TestedModel
from mulcot.shown_text import shortened
from mulcot.types import RATIONALE_KEYS, Answer, Rationale, RationaleRecord

COUNT: Final = 4
"""Posts of each group, at most."""
RULES: Final = {
    "right": (
        "Right",
        f"The first {COUNT} posts with a right label, in the order of the SHA-256 of their ids: a choice that looks at "
        "nothing but the id.",
    ),
    "worst": ("Worst mistakes", f"The {COUNT} posts with a wrong label that got the highest probability."),
    "unparsed": (
        "Replies that are no rationale",
        f"The first {COUNT} such posts, in the order of the SHA-256 of their ids.",
    ),
}
"""The groups: title, and the rule of its choice."""


@dataclass(frozen=True, slots=True)
class Column:
    """What one model says of the post."""

    name: str
    """Teacher, or the system."""
    label: str
    """Its label; empty where it gave none."""
    right: bool | None
    """Whether that is the gold label; None where one of the two is missing."""
    probabilities: Sequence[tuple[str, float]]
    """By label, the likeliest first; () where the model gave none."""
    note: str
    """How the teacher came to its rationale, or why there is none."""
    fields: Mapping[str, Sequence[Piece]]
    """The fields of the rationale, by key, with what the compared text lacks; {} without a rationale."""
    reply: str
    """What was written instead of a rationale."""
    is_teacher: bool = False
    """Whether it is the teacher's."""


@dataclass(frozen=True, slots=True)
class Example:
    """One post with its answers."""

    post_id: str
    """Its id."""
    text: str
    """What it says."""
    aspect: str | None
    """Its aspect."""
    gold: str | None
    """The gold label."""
    picture: Thumbnail
    """Its picture."""
    slices: Mapping[str, str]
    """Its groups."""
    columns: Sequence[Column]
    """Teacher first."""


def shown_model(run: Run) -> TestedModel | None:
    """The model whose answers are shown: the distilled student's lowest seed, else the last system's."""
    answered = [model for model in run.tested if run.predictions(model)]
    distilled = [model for model in answered if model.title == DISTILLED]
    if not answered:
        return None
    return next(iter(distilled), next(model for model in answered if model.title == answered[-1].title))


def choose(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """The posts of each group, see `RULES`; a group without a post is left out."""
    by_hash = sorted(predictions, key=lambda p: sha256(p.answer.post_id.encode("utf-8", "surrogatepass")).digest())
    wrong = [p for p in by_hash if p.gold is not None and p.answer.label != p.gold]
    groups = {
        "right": [p for p in by_hash if p.answer.label == p.gold],
        "worst": sorted(wrong, key=lambda p: -p.answer.probabilities.get(p.answer.label, 0.0)),
        "unparsed": [p for p in by_hash if p.answer.reply and p.answer.rationale is None],
    }
    return {name: found[:COUNT] for name, found in groups.items() if found}


def examples(
    run: Run, model: TestedModel, teacher: Mapping[str, RationaleRecord], pictures: PostPictures
) -> dict[str, list[Example]]:
    """The chosen posts with what teacher, assistant and student say of them, by group.

    Args:
        run: the run.
        model: the model whose answers are shown.
        teacher: the teacher's rationales, by post id.
        pictures: the pictures of the test posts.

    Raises:
        InputError: a prediction file is damaged.
    """
    chosen = choose(run.predictions(model) or [])
    wanted = {p.answer.post_id for group in chosen.values() for p in group}
    others = {
        other.title: {p.answer.post_id: p for p in run.predictions(other) or [] if p.answer.post_id in wanted}
        for other in run.tested
        if other.metrics.kind == "assistant" and other.stage != model.stage
    }
    has_teacher = run.teacher() is not None
    found = {}
    for name, group in chosen.items():
        found[name] = [
            Example(
                post_id=p.answer.post_id,
                text=shortened(p.text),
                aspect=p.aspect,
                gold=p.gold,
                picture=pictures.of(p),
                slices=p.slices,
                columns=_columns(p, model, teacher.get(p.answer.post_id), others, has_teacher),
            )
            for p in group
        ]
    return found


def _columns(
    shown: Prediction,
    model: TestedModel,
    record: RationaleRecord | None,
    others: Mapping[str, Mapping[str, Prediction]],
    has_teacher: bool,
) -> list[Column]:
    reference = record.rationale if record else None
    columns = [_teacher_column(record, shown)] if has_teacher else []
    for title, answers in others.items():
        if shown.answer.post_id in answers:
            columns.append(_model_column(title, answers[shown.answer.post_id].answer, shown.gold, reference))
    return [*columns, _model_column(f"{model.title}, seed {model.seed}", shown.answer, shown.gold, reference)]


def _teacher_column(record: RationaleRecord | None, shown: Prediction) -> Column:
    if record is None:
        return Column("teacher", "", None, (), "no accepted rationale of this post", {}, "", is_teacher=True)
    fields = _marked(record.rationale, shown.answer.rationale)
    label = record.rationale.prediction
    right = None if shown.gold is None else label == shown.gold
    return Column(f"teacher: {record.model}", label, right, (), record.source, fields, "", is_teacher=True)


def _model_column(name: str, answer: Answer, gold: str | None, reference: Rationale | None) -> Column:
    probabilities = sorted(answer.probabilities.items(), key=lambda item: -item[1])
    fields = _marked(answer.rationale, reference) if answer.rationale else {}
    right = None if gold is None else answer.label == gold
    note = "" if answer.rationale else answer.refusal
    return Column(name, answer.label, right, probabilities, note, fields, "" if fields else shortened(answer.reply))


def _marked(rationale: Rationale, other: Rationale | None) -> dict[str, list[Piece]]:
    """The fields of a rationale; without another one to compare with nothing is marked."""
    fields = {key: shortened(getattr(rationale, name)) for key, name in RATIONALE_KEYS.items()}
    if other is None:
        return {key: [Piece(text, alone=False)] for key, text in fields.items()}
    return {key: differences(text, shortened(getattr(other, RATIONALE_KEYS[key]))) for key, text in fields.items()}
