"""The `metrics.json` of every stage: what it holds, and reading those of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from mulcot.manifests import read_manifest
from mulcot.regular_files import MAX_JSON, read_regular
from mulcot.types import InputError, MissingInputError

METRICS_NAME: Final = "metrics.json"
CHAIN_NAME: Final = "chain.json"
_KINDS: Final = ("data", "teacher", "assistant", "augment", "soft_labels", "student")

Share = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Confusion = Mapping[str, Mapping[str, int]]


def gold_counts(confusion: Confusion) -> dict[str, int]:
    """Posts by gold label: the row sums of a confusion matrix, gold label → predicted label → posts."""
    return {gold: sum(row.values()) for gold, row in confusion.items()}


class _Part(BaseModel):
    """A part of a stage's `metrics.json`; what a later version adds is passed over."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class LabelClassification(_Part):
    """One label's scores; None where there is nothing to measure."""

    precision: Share | None
    recall: Share | None
    f1: Share | None
    posts: NonNegativeInt
    """Posts with this gold label."""
    predicted: NonNegativeInt
    """Posts with this prediction."""


class CalibrationBin(_Part):
    """The posts whose confidence lies in (lower, upper]."""

    lower: Share
    upper: Share
    confidence: Share
    accuracy: Share
    posts: NonNegativeInt


class Classification(_Part):
    """What `ClassificationReport` computed; scores are None without a post."""

    accuracy: Share | None
    weighted_f1: Share | None
    macro_f1: Share | None
    confusion: dict[str, dict[str, NonNegativeInt]]
    """Gold label → predicted label → posts."""
    posts: NonNegativeInt
    unparsed: NonNegativeInt = 0
    """Posts without a prediction: in no cell of the matrix, and wrong."""
    per_class: dict[str, LabelClassification] = Field(default_factory=dict)
    """By label; empty in files of earlier versions, as are the following."""
    intervals: dict[str, list[Share]] = Field(default_factory=dict)
    """Score → [low, high], the 95% bootstrap interval over posts."""
    ece: Share | None = None
    """Expected calibration error; None without probabilities."""
    calibration: list[CalibrationBin] = Field(default_factory=list)
    """The bins that hold posts."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Classification:
        if any(row.keys() != self.confusion.keys() for row in self.confusion.values()):
            raise ValueError("rows and columns of the confusion matrix must be the same labels")
        if sum(gold_counts(self.confusion).values()) + self.unparsed != self.posts:
            raise ValueError(f"the confusion matrix and `unparsed` must add up to the number of posts, {self.posts}")
        if self.per_class and self.per_class.keys() != self.confusion.keys():
            raise ValueError("the confusion matrix and per_class must be the same labels")
        if any(len(interval) != 2 for interval in self.intervals.values()):
            raise ValueError("an interval is two numbers, low and high")
        return self


class SourceScores(_Part):
    """The text scores over the references of one source."""

    bleu: Share | None
    sentence_bleu: Share | None
    rouge_l: Share | None
    meteor: Share | None
    sim: Cosine | None
    agreement_with_gold: Share | None
    posts: NonNegativeInt


class Reasoning(_Part):
    """What `ReasoningReport` computed; a score over no posts is None."""

    bleu: Share | None
    rouge_l: Share | None
    parse_rate: Share | None
    agreement_with_gold: Share | None
    agreement_with_answer: Share | None
    sentence_bleu: Share | None = None
    """Of this and the following, earlier versions wrote some or none, and took a smoothed sentence BLEU."""
    meteor: Share | None = None
    sim: Cosine | None = None
    distinct_1: Share | None = None
    distinct_2: Share | None = None
    mean_words: NonNegativeFloat | None = None
    parse_rate_per_field: dict[str, Share | None] = Field(default_factory=dict)
    """Key of a rationale → replies that hold it."""
    by_source: dict[str, SourceScores] = Field(default_factory=dict)
    """Scores by the source of the reference."""
    unavailable: dict[str, str] = Field(default_factory=dict)
    """Metric → why it is None."""


class Scores(_Part):
    """One split's scores."""

    classification: Classification
    reasoning: Reasoning | None = None
    """None where no rationale was asked for."""


class _Made(_Part):
    """What a stage says of itself."""

    left_out: dict[str, NonNegativeInt] = Field(default_factory=dict)
    """Rows of the data that it left out, by reason."""


class Data(_Made):
    """Posts in the common format."""

    kind: Literal["data"]
    posts: dict[str, NonNegativeInt]
    """How many, by split."""

    def made(self) -> str:
        """What the stage made, in words."""
        splits = ", ".join(f"{name} {count:,}" for name, count in self.posts.items())
        return f"{sum(self.posts.values()):,} posts ({splits})"


class Trained(_Made):
    """A model that was trained: one seed of one system."""

    kind: Literal["assistant", "student"]
    title: str
    """The system; stages of one title are its seeds."""
    seed: int
    test: Scores | None = None
    val: Scores | None = None
    train_label_counts: dict[str, NonNegativeInt] | None = None
    """Training posts by gold label."""

    def made(self) -> str:
        """What the stage made, in words."""
        splits = [("val", self.val), ("test", self.test)]
        accuracies = [(name, scores.classification.accuracy) for name, scores in splits if scores]
        known = ", ".join(f"{value:.3f} ({name})" for name, value in accuracies if value is not None)
        return f"{self.title}, seed {self.seed}" + (f": accuracy {known}" if known else "")


class TeacherSplit(_Part):
    """How far the teacher came with one split."""

    posts: NonNegativeInt
    accepted_predicted: NonNegativeInt
    """Posts whose label the teacher found itself."""
    accepted_explained: NonNegativeInt
    """Posts whose given label it explained."""
    failed: dict[str, NonNegativeInt]
    """Posts without a rationale, by reason."""
    requests: NonNegativeInt
    teacher_accuracy: Share | None
    """Of the labels that it found before it was given any."""


class Teacher(_Made):
    """The teacher's rationales."""

    kind: Literal["teacher"]
    splits: dict[str, TeacherSplit]

    def made(self) -> str:
        """What the stage made, in words."""
        splits = self.splits.values()
        predicted, explained = sum(s.accepted_predicted for s in splits), sum(s.accepted_explained for s in splits)
        failed = f"; without one: {self.failures()}" if self.failures() else ""
        return (
            f"{predicted + explained:,} rationales for {sum(s.posts for s in splits):,} posts "
            f"({predicted:,} predicted, {explained:,} explained), {sum(s.requests for s in splits):,} requests{failed}"
        )

    def failures(self) -> str:
        """How many posts have no rationale, by reason, in words; empty when all have one."""
        counts: Counter[str] = Counter()
        for split in self.splits.values():
            counts.update(split.failed)
        return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())


class Augment(_Made):
    """The assistant's further rationales."""

    kind: Literal["augment"]
    posts: NonNegativeInt
    sampled: NonNegativeInt
    kept: NonNegativeInt
    refused: dict[str, NonNegativeInt]
    """Sampled rationales that were not kept, by reason."""

    def made(self) -> str:
        """What the stage made, in words."""
        return f"{self.kept:,} further rationales of {self.sampled:,} sampled for {self.posts:,} posts"


class SoftLabels(_Made):
    """The assistant's probabilities."""

    kind: Literal["soft_labels"]
    tokens: NonNegativeInt
    bytes_per_token: NonNegativeFloat
    kept_mass: NonNegativeFloat | None
    """Mean probability of the ids that were kept; rounding can take it past 1."""

    def made(self) -> str:
        """What the stage made, in words."""
        kept = "all found finished" if self.kept_mass is None else f"{min(1.0, self.kept_mass):.1%} of the probability"
        return f"{self.tokens:,} soft labels, {self.bytes_per_token:.0f} bytes each, {kept}"


FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""What the steps of a chain are called, see `mulcot.chain_plan`: no other name is joined to the run's folder."""


class Step(_Part):
    """A step of a run's chain; its folder is named like it."""

    name: FolderName
    verb: str


class Chain(_Part):
    """What `mulcot run` writes to `chain.json`: the steps that a run is to have, in order."""

    steps: list[Step]


Metrics = Data | Trained | Teacher | Augment | SoftLabels
_METRICS: Final[TypeAdapter[Any]] = TypeAdapter(Annotated[Metrics, Field(discriminator="kind")])
_CHAIN: Final[TypeAdapter[Any]] = TypeAdapter(Chain)


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a run, as it was read."""

    folder: Path
    """Its folder in the run."""
    metrics: Metrics
    """What it measured."""
    wall_seconds: float | None
    """How long it took; None when it never finished."""

    @property
    def name(self) -> str:
        """The folder's name, which is the stage's."""
        return self.folder.name


def read_chain(run_dir: Path) -> list[str]:
    """The names of the stages that a run is to have, in order; empty where the run does not say.

    A report is no stage: it leaves its numbers in the run's folder.

    Raises:
        InputError: `chain.json` is damaged.
    """
    path = run_dir / CHAIN_NAME
    chain: Chain | None = _read(path, _CHAIN) if path.exists() else None
    return [step.name for step in chain.steps if step.verb != "report"] if chain else []


def read_stages(run_dir: Path, chain: Sequence[str]) -> list[Stage]:
    """The stages of a run that have metrics: in the chain's order, those that it does not name in the method's.

    Raises:
        MissingInputError: there is none.
        InputError: a file is damaged.
    """
    stages = []
    for path in run_dir.glob(f"*/{METRICS_NAME}"):
        manifest = read_manifest(path.parent)
        stages.append(Stage(path.parent, _read(path, _METRICS), manifest.wall_seconds if manifest else None))
    if not stages:
        raise MissingInputError(
            f"{run_dir}: no stage has written {METRICS_NAME} there; `mulcot run --config demo.yaml` makes a whole run"
        )
    place = {name: position for position, name in enumerate(chain)}
    return sorted(stages, key=lambda s: (place.get(s.name, len(chain)), _KINDS.index(s.metrics.kind), s.name))


def _read(path: Path, kind: TypeAdapter[Any]) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: it is no file; run the stage again with --fresh")
    try:
        return kind.validate_json(read_regular(path, MAX_JSON))
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = "".join(f"{part}." for part in first["loc"]).rstrip(".") or "the file"
        message = f"{path}: {field}: {first['msg']}; run the stage again with --fresh"
        raise InputError(" ".join(message.split())) from error
