"""Twitter posts as one JSON list, the form in which posts with a teacher's rationales are handed around."""

from collections.abc import Sequence
from pathlib import Path

from data_modules.readers.base import Entries, PostChecks, SingleFileReader, checked, filled, not_empty
from data_modules.readers.json_files import RepeatedKey, as_object, json_list
from data_modules.readers.row_log import Row, RowLog
from mulcot.types import DEFAULT_LABELS, Post


class TwitterJson(SingleFileReader):
    """A JSON list of posts with `id`, `text`, `aspect`, `label` and `image_path`; other keys are not looked at.

    The placeholder for the aspect is already filled in. `id` is a whole number or a text and becomes a text.

    Args:
        path: The JSON file, UTF-8.
        image_root: The folder that every `image_path` is relative to.
        labels: The labels that posts may have.
        check_images: Whether every picture must exist.
    """

    image_field = "image_path"

    def __init__(
        self,
        path: Path,
        image_root: Path,
        labels: Sequence[str] = DEFAULT_LABELS,
        check_images: bool = True,
    ) -> None:
        """Keep the arguments; nothing is read before the posts are asked for."""
        self.path = Path(path)
        self.image_root: Path = Path(image_root)
        self.labels = tuple(labels)
        self.check_images = check_images

    def all_entries(self, log: RowLog) -> Entries:
        """See the base class.

        Raises:
            InputError: The file is no JSON list or an empty one, or a row is wrong.
        """
        names = {"image": self.image_field}
        checks = PostChecks(self.labels, self.image_root, self.check_images, names=names, log=log)
        rows = not_empty(self.path, json_list(self.path))
        return checked(rows, lambda row, entry: _post(checks, row, entry), log)

    def replies(self) -> dict[str, str]:
        """What stands under `cot`: the reply of the teacher that labelled the posts before."""
        objects = [entry for _, entry in json_list(self.path) if isinstance(entry, dict)]
        entries = [entry for entry in objects if not isinstance(entry, RepeatedKey)]
        return {str(entry.get("id")): entry["cot"] for entry in entries if isinstance(entry.get("cot"), str)}

    def files(self) -> list[Path]:
        """The JSON file."""
        return [self.path]


def _post(checks: PostChecks, row: Row, entry: object) -> Post:
    """One entry, checked; in this form every post has an aspect, a label and a path."""
    values = as_object(row, entry)
    for field in ("aspect", "label", TwitterJson.image_field):
        filled(row, field, values.get(field))
    return checks.post(
        row,
        id=values.get("id"),
        text=values.get("text"),
        image=values.get(TwitterJson.image_field),
        aspect=values.get("aspect"),
        label=values.get("label"),
    )
