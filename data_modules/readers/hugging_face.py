"""Posts that lie in a data set of the Hugging Face `datasets` library, on disk or on the hub."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from data_modules.readers.base import Entries, Reader, checked, not_empty
from data_modules.readers.dataset_loading import is_single, load_splits, saved_files, was_downloaded
from data_modules.readers.dataset_pictures import PictureColumn, check_picture_type, pictures
from data_modules.readers.post_columns import FIELDS, PostColumns, PostReading, image_column
from data_modules.readers.row_log import Row, RowLog, one_line, shown
from data_modules.readers.table_files import Values, check_columns
from mulcot.types import DEFAULT_LABELS, SPLITS, InputError, Post, Split

if TYPE_CHECKING:
    from datasets import Dataset

SPLIT_NAMES: Final[dict[Split, tuple[str, ...]]] = {
    "train": ("train",),
    "val": ("validation", "val", "dev"),
    "test": ("test",),
}
"""What the splits are called elsewhere; the first name that a data set has counts."""
_ROWS_PER_BATCH: Final = 1000


class HuggingFace(Reader):
    """A data set that `datasets.save_to_disk` wrote (with splits or as a single `Dataset`), or one of the hub.

    The picture of a post is a `datasets.Image` or bytes, which stay in the table until they are needed, or a path
    relative to `image_root`. A single `Dataset` is the split that it was taken from, else `train`. Without a column
    of ids (or with `columns: {id: null}`) a post's id is `<split>-<row>`, rows counted from 1. An id stands once in
    all splits together: rationales and soft labels refer to it. Null as aspect or label, and -1 in a `ClassLabel`
    column, stand for none. Code of a data set is never run.

    Args:
        path: The folder, or the name on the hub (`owner/name`).
        name: The configuration, for the hub.
        revision: The branch, tag or commit, for the hub.
        splits_of: Our split to theirs; by default train, validation (or val, or dev) and test, those that exist.
        columns: The column of the field `id`, `text`, `image`, `aspect` or `label`, where it is called otherwise. A
            column that is named must be there; null has id, aspect or label not read. Other columns are not looked at.
        labels: The labels that posts may have.
        label_names: What the data set writes (a name of a `ClassLabel`, a text, a whole number as its digits) and
            which label that is. Without it the data set must hold the labels themselves.
        image_root: The folder that paths in the image column are relative to.
        aspect_in_text: Whether the text must hold the aspect; false where aspects are categories.
        check_images: Whether every picture that is named by a path must exist.
        slices: Columns that say which groups a post belongs to, see `Table`.

    Raises:
        InputError: An argument is wrong.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        revision: str | None = None,
        splits_of: dict[Split, str] | None = None,
        columns: dict[str, str | None] | None = None,
        labels: Sequence[str] = DEFAULT_LABELS,
        label_names: dict[str, str] | None = None,
        image_root: Path | None = None,
        aspect_in_text: bool = True,
        check_images: bool = True,
        slices: Sequence[str] = (),
    ) -> None:
        """Check the arguments; nothing is read before a split is asked for."""
        self.path = str(path)
        self.name = name
        self.revision = revision
        self.splits_of = splits_of
        self.labels = tuple(labels)
        self.image_field = image_column(columns, "image")
        self.image_root = None if image_root is None else Path(image_root)
        defaults = {field: field for field in FIELDS}
        check_images = check_images and image_root is not None
        self._columns = PostColumns(
            columns, labels, label_names, aspect_in_text, check_images, defaults, ("text", "image"), slices=slices
        )
        self._loaded: dict[str, Dataset] | None = None

    def entries(self, split: Split, log: RowLog) -> Entries:
        """See the base class.

        Raises:
            InputError: The data set cannot be loaded, or lacks the split or a column; or a row is wrong, or its id
                stands in another split as well.
        """
        from datasets import ClassLabel

        names = self._split_names()
        if split not in names:
            known = ", ".join(map(repr, self._splits()))
            raise InputError(f"{self._shown_path}: there is no split for {split!r}; name one of {known} in splits_of")
        dataset, place = self._splits()[names[split]], self._place(names[split])
        columns = self._columns_of(dataset, place)
        label = dataset.features[columns["label"]] if "label" in columns else None
        groups = {field: dataset.features[column] for field, column in self._columns.slices.items()}
        reading = PostReading(self._columns, split, self.image_root or Path(), log)

        def post(row: Row, values: Values) -> Post:
            values["image"] = self._picture(row, columns["image"], values["image"])
            if isinstance(label, ClassLabel):
                values["label"] = self._class_name(row, columns["label"], values["label"], label.names)
            for field, feature in groups.items():
                if isinstance(feature, ClassLabel):
                    number = values[field]
                    values[field] = None if number in (None, -1) else feature.int2str(number)
            return reading.post(row, values)

        posts = checked(not_empty(place, _rows(dataset, place, columns)), post, log)
        return reading.checks.across_splits(split, posts, self._ids, log, self.entries)

    def splits(self) -> tuple[Split, ...]:
        """Those that the data set has.

        Raises:
            InputError: The data set cannot be loaded, or `splits_of` names a split that it lacks.
        """
        names = self._split_names()
        return tuple(split for split in SPLITS if split in names)

    def files(self) -> list[Path]:
        """The files that `save_to_disk` wrote; none of a data set of the hub, whose revision says what it holds."""
        return saved_files(Path(self.path))

    @property
    def _shown_path(self) -> str:
        return one_line(Path(self.path))

    def _place(self, theirs: str) -> Path:
        """What errors call a split."""
        return Path(self.path) if is_single(self.path) else Path(self.path) / theirs

    def _splits(self) -> dict[str, "Dataset"]:
        """Every split by their name; loaded once, for a hub is asked each time."""
        if self._loaded is None:
            self._loaded = load_splits(self.path, self.name, self.revision)
        return self._loaded

    def _split_names(self) -> dict[Split, str]:
        """Our splits to theirs."""
        loaded = self._splits()
        if self.splits_of is None:
            found = {ours: [name for name in names if name in loaded] for ours, names in SPLIT_NAMES.items()}
            return {ours: names[0] for ours, names in found.items() if names}
        theirs = list(self.splits_of.values())
        for number, name in enumerate(theirs):
            if name not in loaded:
                known = ", ".join(map(repr, loaded))
                raise InputError(f"splits_of: {self._shown_path} has no split {name!r}; use one of {known}")
            if name in theirs[:number]:
                raise InputError(f"splits_of: {name!r} comes twice; give every split posts of its own")
        return dict(self.splits_of)

    def _columns_of(self, dataset: "Dataset", place: Path) -> dict[str, str]:
        """The fields that the split has and their columns."""
        check_columns(place, dataset.column_names, self._columns.names, self._columns.needed)
        columns = {field: name for field, name in self._columns.names.items() if name in dataset.column_names}
        kind = dataset.data.schema.field(columns["image"]).type
        check_picture_type(kind, f"{one_line(place)}, column {columns['image']!r}", self.image_root is not None)
        return columns

    def _ids(self, split: Split) -> Iterator[tuple[Row, object]]:
        """The ids in a split, where it has any."""
        theirs, column = self._split_names().get(split), self._columns.names.get("id")
        if theirs is None or column is None or column not in self._splits()[theirs].column_names:
            return
        for row, values in _rows(self._splits()[theirs], self._place(theirs), {"id": column}):
            yield row, values["id"]

    def _picture(self, row: Row, column: str, value: object) -> object:
        """What `PostChecks` takes: a picture that was found, or a path relative to the image root."""
        if not isinstance(value, str) or self.image_root is not None:
            return value
        if not os.path.isdir(self.path) and was_downloaded(value):
            return Path(value)
        remedy = "give the folder that paths are relative to as image_root"
        raise row.error(column, f"{shown(value)} is a path, and its picture is not in the table", remedy)

    def _class_name(self, row: Row, column: str, number: object, names: Sequence[str]) -> str | None:
        """The name behind a number of a `ClassLabel`, where -1 is how `datasets` writes that there is none."""
        if number is None or number == -1:
            return None
        known = ", ".join(map(repr, names))
        if not isinstance(number, int) or not 0 <= number < len(names):
            raise row.error(column, f"{number} has no name", f"number the names of the column from 0 on: {known}")
        name = names[number]
        if name not in (self._columns.label_names or self.labels):
            example = f"label_names: {{{name!r}: {self.labels[0]}, ...}}"
            remedy = f"give each of the column's names {known} a label ({example}), or name it in `labels`"
            raise row.error(column, f"{shown(name)} stands for no label", remedy)
        return name


def _rows(dataset: "Dataset", place: Path, columns: Mapping[str, str]) -> Iterator[tuple[Row, Values]]:
    """The rows of a split by our fields; where a picture's bytes are in the table, they stay there."""
    source = PictureColumn.of(dataset, place, columns["image"]) if "image" in columns else None
    view = dataset.select_columns(list(dict.fromkeys(columns.values()))).with_format("arrow")
    start = 0
    for table in view.iter(_ROWS_PER_BATCH):
        values = {field: table.column(name).to_pylist() for field, name in columns.items() if field != "image"}
        if source is not None:
            values["image"] = pictures(table.column(source.column), str(place), start, source)
        for number in range(table.num_rows):
            yield Row(place, start + number + 1), {field: cells[number] for field, cells in values.items()}
        start += table.num_rows
