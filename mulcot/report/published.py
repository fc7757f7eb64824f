"""Numbers that others published, given in a file, beside those of a run on the same posts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from mulcot.config_files import load_yaml
from mulcot.metrics.stage_files import gold_counts
from mulcot.report.run import Run
from mulcot.types import InputError, MissingInputError

DataSet = Literal["MVSA-Single", "MVSA-Multiple", "Twitter-2015", "Twitter-2017"]
Measure = Literal["accuracy", "weighted_f1", "macro_f1", "bleu", "rouge_l", "meteor", "sim", "distinct_1", "distinct_2"]
_TWITTER: Final[dict[DataSet, tuple[Mapping[str, int], Mapping[str, int]]]] = {
    "Twitter-2015": (
        {"positive": 928, "neutral": 1883, "negative": 368},
        {"positive": 317, "neutral": 607, "negative": 113},
    ),
    "Twitter-2017": (
        {"positive": 1508, "neutral": 1638, "negative": 416},
        {"positive": 493, "neutral": 573, "negative": 168},
    ),
}
"""Training and test posts by label of the official splits."""
_MVSA: Final[dict[DataSet, tuple[int, int]]] = {"MVSA-Single": (3611, 450), "MVSA-Multiple": (13624, 1700)}
"""Training and test posts of the split that the literature uses; there is no official one."""


class PublishedRow(BaseModel):
    """One number that somebody published."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    system: str
    """The system, such as `MulCoT-RD (3B)`."""
    data_set: DataSet
    """What it was tested on."""
    metric: Measure
    """What was measured, as `metrics.json` calls it."""
    value: Annotated[float, Field(ge=0, le=1)]
    """The number, in [0, 1]."""
    source: str
    """Where it stands: paper, table and row."""


_ROWS: Final[TypeAdapter[list[PublishedRow]]] = TypeAdapter(list[PublishedRow])


@dataclass(frozen=True, slots=True)
class Published:
    """What a file gives a run."""

    data_set: DataSet | None
    """The data set whose splits the run has; None for any other."""
    rows: Sequence[PublishedRow]
    """The rows of that data set."""
    left_out: int
    """Rows of the file that are of another one."""


def read_published(path: Path) -> list[PublishedRow]:
    """The rows of a file.

    Raises:
        MissingInputError: there is no such file.
        InputError: it is no YAML list of rows; the message names row and field.
    """
    if not path.exists():
        raise MissingInputError(f"{path}: there is no such file; --published takes a YAML list of rows")
    try:
        return _ROWS.validate_python(load_yaml(path))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        row, *names = first["loc"] or ("",)
        place = f"row {row + 1}" if isinstance(row, int) else "the file"
        field = "".join(f", field {name!r}" for name in names)
        raise InputError(
            f"{path}: {place}{field}: {' '.join(first['msg'].split())}; a row has system, data_set, metric, value (in "
            "[0, 1]) and source"
        ) from error


def published_for(run: Run, rows: Sequence[PublishedRow]) -> Published:
    """The rows that belong beside a run: those of its data set, if it has that data set's splits."""
    data_set = data_set_of(run)
    fitting = [row for row in rows if row.data_set == data_set]
    return Published(data_set, fitting, len(rows) - len(fitting))


def data_set_of(run: Run) -> DataSet | None:
    """The data set whose splits a run was trained and tested on, told by their sizes; None for any other."""
    for model in run.tested:
        trained, tested = model.metrics.train_label_counts, gold_counts(model.test.confusion)
        if trained is None:
            continue
        for name, counts in _TWITTER.items():
            if (trained, tested) == counts:
                return name
        for name, sizes in _MVSA.items():
            if (sum(trained.values()), sum(tested.values())) == sizes:
                return name
    return None
