"""Tables of posts: JSON Lines, a JSON list, CSV, TSV or Parquet, one file a split."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from data_modules.readers.base import Entries, Reader
from data_modules.readers.post_columns import FIELDS, PostColumns, image_column
from data_modules.readers.row_log import RowLog
from data_modules.readers.table_files import check_suffix
from data_modules.readers.table_posts import TablePosts
from mulcot.types import DEFAULT_LABELS, SPLITS, InputError, Split


class Table(Reader):
    """One table a split, whose format its suffix says: `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` or `.parquet`.

    A line of JSON Lines is such as `{"id": "7", "text": "Hail in May", "image": "hail.png", "aspect": "May",
    "label": "negative"}`; the columns of the other formats are called the same, or as `columns` says. Without an
    aspect the whole post is judged, without a label the gold label is not known; other columns are not looked at.
    Null counts as left out, and so does an empty label of CSV, which has no null; an empty aspect is an error. An id
    stands once in all files together: rationales and soft labels refer to it.

    CSV and TSV begin with a header and have quotation marks around cells that hold the delimiter or a line break. A
    JSON list is held in memory while it is read, the other formats are not.

    Args:
        files: The file of each split; a split may be left out.
        image_root: The folder that every picture's path is relative to.
        columns: The table's name of the field `id`, `text`, `image`, `aspect` or `label`, where it is another. An
            aspect or label that is named must be there; null has it not read. With `id: null` a post's id is
            `<split>-<row>`, the row or line as errors count it.
        labels: The labels that posts may have.
        label_names: What the table writes and which label that is, such as `{"0": negative, "1": positive}`; whole
            numbers count as their digits. Without it the table must hold the labels themselves.
        encoding: That of a text file, such as utf-8, utf-16 or gb18030.
        delimiter: What parts the cells of CSV and TSV files, by default comma and tab.
        aspect_in_text: Whether the text must hold the aspect; false where aspects are categories.
        check_images: Whether every picture must exist.
        slices: Columns that say which groups a post belongs to, for tables of results: texts, whole numbers, or true
            and false, which become yes and no. No model sees them. An empty cell names no group.
    """

    def __init__(
        self,
        files: dict[Split, Path],
        image_root: Path,
        columns: dict[str, str | None] | None = None,
        labels: Sequence[str] = DEFAULT_LABELS,
        label_names: dict[str, str] | None = None,
        encoding: str = "utf-8",
        delimiter: str | None = None,
        aspect_in_text: bool = True,
        check_images: bool = True,
        slices: Sequence[str] = (),
    ) -> None:
        """Keep the arguments; a wrong one is an error when a split is asked for."""
        self.paths = {split: Path(path) for split, path in files.items()}
        self.image_root: Path = Path(image_root)
        self.image_field = image_column(columns, "image")
        self.labels = tuple(labels)
        self._columns = (columns, labels, label_names, aspect_in_text, check_images)
        self._format = (encoding, delimiter)
        self._slices = tuple(slices) if not isinstance(slices, str) else slices

    def entries(self, split: Split, log: RowLog) -> Entries:
        """See the base class.

        Raises:
            InputError: An argument is wrong; no file is named for the split; the file is missing, damaged or without
                posts, or it lacks a column; a row is wrong, or its id stands in another file as well.
        """
        self._check_files()
        if split not in self.paths:
            named = ", ".join(self.splits()) or "none"
            raise InputError(f"files: no file is named for the split {split!r}; there are files for {named}: add it")
        return self._posts.entries(split, self.paths, self.image_root, log)

    def splits(self) -> tuple[Split, ...]:
        """Those that a file is named for."""
        return tuple(split for split in SPLITS if split in self.paths)

    def files(self) -> list[Path]:
        """The named files that exist."""
        return [path for path in self.paths.values() if path.is_file()]

    @cached_property
    def _posts(self) -> TablePosts:
        """How the tables' rows become posts; a wrong argument shows here."""
        names = {field: field for field in FIELDS}
        columns = PostColumns(*self._columns, names, ("id", "text", "image"), slices=self._slices)
        return TablePosts(columns, *self._format)

    def _check_files(self) -> None:
        for split, path in self.paths.items():
            if split not in SPLITS:
                raise InputError(f"files: there is no split {split!r}; the splits are {', '.join(SPLITS)}")
            check_suffix(path)
        if len({path.resolve() for path in self.paths.values()}) < len(self.paths):
            raise InputError("files: two splits have the same file; give each a file of its own")
