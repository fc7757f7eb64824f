"""Samples on disk: whole ones stay, a line that was cut off does not, other settings are refused."""

from pathlib import Path

import pytest

from mulcot.types import InputError
from stages.augmentation import Sample
from stages.sample_log import SampleLog

SETTINGS = {"temperature": 0.7, "inputs": {"a.jsonl": "12"}}
SAMPLES = [Sample("1", 0, "fine\n\u2028 \ud800"), Sample("1", 1, "ok"), Sample("2", 0, "")]


def test_what_was_added_is_known_to_every_process_afterwards(tmp_path: Path) -> None:
    SampleLog(tmp_path / "samples", SETTINGS, 0).add(SAMPLES[:2])
    SampleLog(tmp_path / "samples", SETTINGS, 1).add(SAMPLES[2:])
    for rank in range(3):
        log = SampleLog(tmp_path / "samples", SETTINGS, rank)
        assert list(log.known.values()) == SAMPLES
        assert (log.finished(1), log.finished(2), log.finished(3)) == ({"1", "2"}, {"1"}, set())


def test_a_file_cut_off_anywhere_gives_its_whole_lines_and_is_written_on(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    SampleLog(folder, SETTINGS, 0).add(SAMPLES)
    path = folder / "rank-000.jsonl"
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        log = SampleLog(folder, SETTINGS, 0)
        known = list(log.known.values())
        assert known == SAMPLES[: len(known)]
        assert len(known) == max(0, content[:length].count(b"\n") - 1)
        log.add(SAMPLES[len(known) :])
        assert path.read_bytes() == content


def test_other_settings_and_damage_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    SampleLog(folder, SETTINGS, 0).add(SAMPLES)
    with pytest.raises(InputError, match=r"rank-000.*temperature was 0\.7, is 1\.0.*--fresh"):
        SampleLog(folder, SETTINGS | {"temperature": 1.0}, 0)
    path = folder / "rank-000.jsonl"
    path.write_bytes(path.read_bytes().replace(b'["1", 1', b'["1", }'))
    with pytest.raises(InputError, match=r"rank-000\.jsonl: damaged"):
        SampleLog(folder, SETTINGS, 0)
