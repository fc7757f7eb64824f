"""The charts of a run: losses, validation accuracy, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mulcot.metrics.stage_files import Trained
from mulcot.report.charts import Chart, Series, line_chart, reliability_chart
from mulcot.report.configs import FIT_CONFIG, read_config
from mulcot.report.curves import FOLDER, Points, read_scalars, thinned
from mulcot.report.run import Run, TestedModel
from mulcot.report.score_tables import by_title
from mulcot.types import TASKS

Scalars = Mapping[str, Points]


def stage_scalars(run: Run) -> tuple[dict[str, dict[str, Scalars]], list[str]]:
    """The curves of every trained stage.

    Returns:
        System, then stage, then tag, then the curve; and a note for each stage whose files hold none.
    """
    found: dict[str, dict[str, Scalars]] = {}
    notes = []
    titles = {model.stage: model.title for model in run.tested}
    for stage in run.stages:
        if not isinstance(stage.metrics, Trained):
            continue
        scalars = read_scalars(stage.folder)
        if scalars:
            found.setdefault(titles.get(stage.name, stage.metrics.title), {})[stage.name] = scalars
        elif (stage.folder / FOLDER).is_dir():
            notes.append(f"{stage.name}/{FOLDER} holds no curve that can be read")
    return found, notes


def loss_charts(run_dir: Path, scalars: Mapping[str, Mapping[str, Scalars]]) -> list[Chart]:
    """For every system and task its losses, hard beside soft; each seed is a line.

    Raises:
        InputError: the configuration of a stage is damaged.
    """
    charts = []
    for title, stages in scalars.items():
        called = _loss_names(run_dir / next(iter(stages)) / FIT_CONFIG)
        for task in TASKS:
            prefix = f"loss/{task}/"
            names = dict.fromkeys(tag for tags in stages.values() for tag in tags if tag.startswith(prefix))
            losses = [name for name in names if name != f"{prefix}total"]
            series = [
                Series(called.get(name.removeprefix(prefix), name.removeprefix(prefix)), thinned(tags[name]), style)
                for style, name in enumerate(losses)
                for tags in stages.values()
                if name in tags
            ]
            if any(one.points for one in series):
                charts.append(line_chart(f"{title}: {task}", series, "optimizer step", "nats per token"))
    return charts


def _loss_names(config: Path) -> dict[str, str]:
    """What the legend calls each loss of a configuration: its name and its class."""
    losses = read_config(config).get("losses")
    if not isinstance(losses, Mapping):
        return {}  # of a stage without losses, or of a run that somebody wrote by hand
    return {
        str(name): f"{name} ({str(loss['class_path']).rsplit('.', 1)[-1]})"
        for name, loss in losses.items()
        if isinstance(loss, Mapping) and "class_path" in loss
    }


def validation_chart(scalars: Mapping[str, Mapping[str, Scalars]]) -> Chart | None:
    """Validation accuracy after every epoch; each seed is a line."""
    series = [
        Series(title, _by_epoch(tags), style)
        for style, (title, stages) in enumerate(scalars.items())
        for tags in stages.values()
        if tags.get("val/accuracy")
    ]
    return line_chart("Validation accuracy", series, "epoch", "accuracy", dots=True) if series else None


def _by_epoch(tags: Scalars) -> Points:
    """Validation accuracy over the number of epochs that were trained."""
    epochs = dict(tags.get("epoch", ()))
    return [(epochs.get(step, float(at)) + 1, value) for at, (step, value) in enumerate(tags["val/accuracy"])]


def calibration_charts(run: Run) -> list[tuple[Chart, Sequence[tuple[str, float | None]]]]:
    """For every system its reliability diagram, and the expected calibration error of each seed."""
    charts: list[tuple[Chart, Sequence[tuple[str, float | None]]]] = []
    for title, models in by_title(run).items():
        series = [
            Series(f"seed {model.seed}", [(b["confidence"], b["accuracy"]) for b in bins], style)
            for style, model in enumerate(models)
            if (bins := _bins(model))
        ]
        if series:
            errors = [(f"seed {model.seed}", model.test.model_dump().get("ece")) for model in models]
            charts.append((reliability_chart(title, series), errors))
    return charts


def _bins(model: TestedModel) -> list[Mapping[str, float]]:
    """The bins of a model's confidences that hold a post."""
    return [found for found in model.test.model_dump().get("calibration") or () if found["posts"]]
