"""The file of the probes: written, read, and refused where it is something else."""

import json
from pathlib import Path

import pytest

from mulcot.metrics.probe_files import Changes, Conflict, Marked, Probes, Unavailable, read_probes, write_probes
from mulcot.types import InputError, MissingInputError

CHANGES = Changes(
    posts=2, golds=0, accuracy=None, accuracy_before=None, labels_changed=0.5, total_variation=0.1,
    probability_change=-0.1,
)  # fmt: skip
MARKED = Marked(posts=1, golds=0, accuracy=None)
FOUND = Probes(
    seed=3,
    posts=2,
    faithfulness={"image_removed": CHANGES},
    other_aspects=None,
    conflict=Conflict(yes=MARKED, no=MARKED),
    grounding=Unavailable(unavailable="no weights"),
)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    write_probes(tmp_path / "probes.json", FOUND)
    assert read_probes(tmp_path / "probes.json") == FOUND
    values = json.loads((tmp_path / "probes.json").read_text())
    assert values["grounding"] == {"unavailable": "no weights"}
    assert values["faithfulness"]["image_removed"]["labels_changed"] == 0.5


def test_what_is_wrong_is_one_line_with_the_field(tmp_path: Path) -> None:
    path = tmp_path / "probes.json"
    with pytest.raises(
        MissingInputError, match=r"probes\.json: there is no such file; `mulcot test` with --config exp"
    ):
        read_probes(path)
    values = FOUND.model_dump()
    values["faithfulness"]["image_removed"]["labels_changed"] = 1.5
    path.write_text(json.dumps(values))
    with pytest.raises(
        InputError, match=r"probes\.json: faithfulness\.image_removed\.labels_changed: .*less than or eq"
    ):
        read_probes(path)
    path.write_text("{")
    with pytest.raises(InputError, match=r"probes\.json: the file: Invalid JSON"):
        read_probes(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"probes\.json: it cannot be read"):
        read_probes(path)
