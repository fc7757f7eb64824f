"""A run as a report reads it: its stages, the models that were tested, and what they answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mulcot.manifests import MANIFEST_NAME
from mulcot.metrics.stage_files import (
    METRICS_NAME,
    Classification,
    Reasoning,
    Stage,
    Teacher,
    Trained,
    read_chain,
    read_stages,
)
from mulcot.predictions import FIT_PREDICTIONS, Prediction, read_predictions

BASELINE: Final = "student, labels alone"
"""The system that the others are compared with: the student's model trained on gold labels."""
DISTILLED: Final = "student, distilled"
_TITLES: Final = (BASELINE, DISTILLED)


@dataclass(frozen=True, slots=True)
class TestedModel:
    """A trained stage that was tested: one seed of one system."""

    __test__ = False  # for pytest, which takes the name for that of a test

    folder: Path
    """The stage's folder."""
    metrics: Trained
    """Its metrics; the title is that of the system, which a second stage of one seed has for itself."""
    test: Classification
    """Its scores on the test split."""

    @property
    def stage(self) -> str:
        """The stage's name."""
        return self.folder.name

    @property
    def title(self) -> str:
        """The system that it is a seed of."""
        return self.metrics.title

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.metrics.seed

    @property
    def reasoning(self) -> Reasoning | None:
        """The scores of its rationales on the test split; None where none was asked for."""
        return self.metrics.test.reasoning if self.metrics.test else None


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder and what was read of it."""

    folder: Path
    """The run's folder."""
    chain: list[str]
    """The stages that it is to have, in order; empty where the run does not say."""
    stages: list[Stage]
    """Those that have metrics, in order."""
    tested: list[TestedModel]
    """The tested models, by system (assistants first, then the known students) and seed."""
    _predictions: dict[str, list[Prediction] | None] = field(default_factory=dict)

    def predictions(self, model: TestedModel) -> list[Prediction] | None:
        """What a model answered to the test posts; None where its stage left no prediction file.

        Raises:
            InputError: the file is damaged.
        """
        if model.stage not in self._predictions:
            path = model.folder / FIT_PREDICTIONS
            self._predictions[model.stage] = read_predictions(path) if path.exists() else None
        return self._predictions[model.stage]

    def teacher(self) -> Stage | None:
        """The first stage that labelled; None where there is none."""
        return next((stage for stage in self.stages if isinstance(stage.metrics, Teacher)), None)

    def not_run(self) -> list[str]:
        """The stages of the chain that have left nothing."""
        done = {path.parent.name for name in (METRICS_NAME, MANIFEST_NAME) for path in self.folder.glob(f"*/{name}")}
        return [name for name in self.chain if name not in done]


def read_run(folder: Path) -> Run:
    """Reads the metrics of every stage.

    Raises:
        MissingInputError: no stage of the run has written its metrics.
        InputError: a file of the run is damaged.
    """
    chain = read_chain(folder)
    stages = read_stages(folder, chain)
    return Run(folder, chain, stages, _tested(stages))


def _tested(stages: Sequence[Stage]) -> list[TestedModel]:
    models: dict[tuple[str, int], TestedModel] = {}
    for stage in stages:
        if not isinstance(stage.metrics, Trained) or stage.metrics.test is None:
            continue
        metrics = stage.metrics
        if (metrics.title, metrics.seed) in models:
            # A stage that was trained again under another name: a system of its own, never a fourth seed.
            metrics = metrics.model_copy(update={"title": f"{metrics.title} ({stage.name})"})
        models[metrics.title, metrics.seed] = TestedModel(stage.folder, metrics, stage.metrics.test.classification)
    return sorted(models.values(), key=lambda model: (_rank(model.metrics), model.title, model.seed))


def _rank(trained: Trained) -> int:
    if trained.kind == "assistant":
        return 0
    return 1 + (_TITLES.index(trained.title) if trained.title in _TITLES else len(_TITLES))
