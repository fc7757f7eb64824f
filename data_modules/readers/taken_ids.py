"""Which ids of a data set are taken: those of posts that are kept."""

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from data_modules.readers.row_log import Places, Row, RowError, RowLog, shown
from mulcot.types import InputError, Split

_OWN_ID: Final = "give every post an id of its own"


class TakenIds:
    """The ids that one pass over a source has met, in the split that is read and in others.

    Where wrong rows are skipped, a row that is left out takes no id, so that a right row with the same id is kept.

    Args:
        log: What the pass met, which knows of pictures that turn out to be broken later.
    """

    def __init__(self, log: RowLog) -> None:
        """None is taken."""
        self._log = log
        self._here: Places[str] = Places()
        self._elsewhere: dict[Split, Places[str]] = {}
        self._kept: dict[Split, set[str] | None] = {}
        self.kept: Callable[[Split], set[str]] | None = None
        """Finds out which ids another split keeps, by reading it; None where each of its ids counts."""

    def take(self, name: str, row: Row) -> None:
        """The post of this row is right, as far as the row itself shows it."""
        self._here.put(name, row)

    @property
    def here(self) -> Places[str]:
        """The ids of the split that is read."""
        return self._here

    def of_split(self, split: Split) -> Places[str]:
        """The ids that were met in another split."""
        return self._elsewhere.setdefault(split, Places())

    def take_split(self, split: Split, ids: Places[str]) -> bool:
        """Takes all ids of another split at once, as `take_elsewhere` does one by one, unless one of them is taken.

        Args:
            split: The split.
            ids: Its ids, which an earlier pass under the same rule for wrong rows has met; they are not changed.

        Returns:
            Whether they were taken; where not, none was.
        """
        met = [self._here, *self._elsewhere.values()]
        if self._log.on_bad_row == "error" and any(ids.meets(others) for others in met):
            return False
        self._elsewhere[split] = ids
        return True

    def take_elsewhere(self, split: Split, name: str, row: Row) -> None:
        """A row of another split has this id, whatever becomes of it."""
        self.of_split(split).note(name, row)

    def check(self, row: Row, name: str, field: str) -> None:
        """Refuses an id that a post has which is kept.

        Raises:
            RowError: It is taken.
        """
        earlier = self._of(name)
        if earlier is not None:
            raise _taken(row, name, earlier, field, _OWN_ID)

    def _of(self, name: str) -> Row | None:
        """The row that has an id and is kept."""
        for split, ids in self._elsewhere.items():
            row = ids.of(name)
            if row is not None and self._keeps(split, name):
                return row
        row = self._here.of(name)
        skips = self._log.on_bad_row == "skip"
        return None if row is None or (skips and self._log.is_broken(row)) else row

    def _keeps(self, split: Split, name: str) -> bool:
        """Whether another split keeps a post with this id; it is read once, and only when that matters."""
        if self._log.on_bad_row == "error" or self.kept is None:
            return True
        if split not in self._kept:
            self._kept[split] = None
            with suppress(InputError):  # of a split that cannot be read all ids count
                self._kept[split] = self.kept(split)
        ids = self._kept[split]
        return ids is None or name in ids


def check_new_id(ids: Places[str], row: Row, name: str, field: str = "id", remedy: str = _OWN_ID) -> None:
    """Adds an id to those that were met.

    Raises:
        RowError: It is among them already.
    """
    earlier = ids.note(name, row)
    if earlier is not None:
        raise _taken(row, name, earlier, field, remedy)


def _taken(row: Row, name: str, earlier: Row, field: str, remedy: str) -> RowError:
    return row.error(field, f"the id {shown(name)} already stands at {earlier}", remedy)
