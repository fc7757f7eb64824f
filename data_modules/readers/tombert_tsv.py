"""Twitter-2015 and Twitter-2017 as the TomBERT distribution has them: three TSV files and a folder of pictures."""

from collections.abc import Sequence
from pathlib import Path

from data_modules.readers.base import Entries, PostChecks, Reader, checked, filled, not_empty, read_lines
from data_modules.readers.row_log import Row, RowError, RowLog, shown
from mulcot.types import InputError, Post, Split

PLACEHOLDER = "$T$"
COLUMNS = ("index", "label", "image", "text", "aspect")
CODED_LABELS = ("negative", "neutral", "positive")
FILE_NAMES: dict[Split, str] = {"train": "train.tsv", "val": "dev.tsv", "test": "test.tsv"}


class TombertTsv(Reader):
    """The folder of `train.tsv`, `dev.tsv` (the split `val`) and `test.tsv`.

    Columns go by position, for the header repeats names and one file's header lacks one. A quotation mark is an
    ordinary character. The index restarts in every file, so a post's id is `<split>-<index>`. The aspect takes the
    place of `$T$`.

    Args:
        folder: The folder of the TSV files, UTF-8.
        image_root: The folder of the pictures.
        labels: What the label codes 0, 1, 2, ... stand for, in this order.
        check_images: Whether every picture must exist.
    """

    def __init__(
        self,
        folder: Path,
        image_root: Path,
        labels: Sequence[str] = CODED_LABELS,
        check_images: bool = True,
    ) -> None:
        """Keep the arguments; nothing is read before a split is asked for."""
        self.folder = Path(folder)
        self.image_root: Path = Path(image_root)
        self.labels = tuple(labels)
        self.check_images = check_images

    def entries(self, split: Split, log: RowLog) -> Entries:
        """See the base class.

        Raises:
            InputError: The file is missing, without its header or without posts, or a row is wrong.
        """
        checks = PostChecks(self.labels, self.image_root, self.check_images, names={"id": "index"}, log=log)
        path = self.folder / FILE_NAMES[split]
        rows = read_lines(path)
        header, names = next(rows, (Row(path, 1, "line"), ""))
        if isinstance(names, RowError):
            raise names
        if header.number != 1 or names.split("\t")[0].strip() != "index":
            # Skipping a first line that is a post would lose that post without a word.
            raise InputError(
                f"{Row(path, 1, 'line')}: the header is missing; begin the file with a line 'index<TAB>...'"
            )
        return checked(not_empty(path, rows), lambda row, line: self._post(checks, row, split, line), log)

    def splits(self) -> tuple[Split, ...]:
        """Those whose file exists: the distribution's parts are handed around one by one."""
        return tuple(split for split, name in FILE_NAMES.items() if (self.folder / name).is_file())

    def files(self) -> list[Path]:
        """Those of the three TSV files that exist."""
        paths = [self.folder / name for name in FILE_NAMES.values()]
        return [path for path in paths if path.is_file()]

    def _post(self, checks: PostChecks, row: Row, split: Split, line: str | RowError) -> Post:
        """One line, checked."""
        if isinstance(line, RowError):
            raise line
        cells = line.split("\t")
        if len(cells) != len(COLUMNS):
            raise RowError(
                row, None, f"{len(cells)} tab-separated columns", f"write {len(COLUMNS)} columns: {', '.join(COLUMNS)}"
            )
        index, code, image, text, aspect = cells
        filled(row, "index", index)
        if text.count(PLACEHOLDER) != 1:
            problem = f"{PLACEHOLDER} stands {text.count(PLACEHOLDER)} times in it"
            raise row.error("text", problem, f"put {PLACEHOLDER} once, where the aspect belongs")
        whole = text.replace(PLACEHOLDER, filled(row, "aspect", aspect))
        label = self._decode(row, code)
        return checks.post(row, id=f"{split}-{index}", text=whole, image=image, aspect=aspect, label=label)

    def _decode(self, row: Row, code: str) -> str:
        """The label that a code stands for."""
        names = {str(number): label for number, label in enumerate(self.labels)}
        if code not in names:
            choices = ", ".join(f"{number} {label}" for number, label in names.items())
            raise row.error("label", f"unknown code {shown(code)}", f"use one of {choices}")
        return names[code]
