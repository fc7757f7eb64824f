import os
from pathlib import Path

import pytest

from mulcot.files import write_atomic
from mulcot.types import InputError


@pytest.mark.parametrize(("data", "content"), [("ä\r\n\n", b"\xc3\xa4\r\n\n"), (b"\0\xff", b"\0\xff"), ("", b"")])
def test_what_is_written_is_there_and_nothing_else(tmp_path: Path, data: str | bytes, content: bytes) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomic(path, data)
    write_atomic(path, data)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["file"]


def test_a_failure_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_bytes_are_on_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    sync, rename = os.fsync, os.replace

    def fsync(handle: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        sync(handle)

    def replace(old: Path, new: Path) -> None:
        steps.append("rename")
        assert Path(old).parent == Path(new).parent
        rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomic(tmp_path / "file", "text")
    assert steps == ["file", "rename", "folder"]


def test_permissions_are_kept_or_those_of_any_new_file(tmp_path: Path) -> None:
    path, plain = tmp_path / "file", tmp_path / "plain"
    plain.write_text("x")
    write_atomic(path, "text")
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o640)
    write_atomic(path, "other")
    assert path.stat().st_mode & 0o777 == 0o640


def test_nothing_is_written_through_or_over_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(InputError, match="link: is a symbolic link"):
        write_atomic(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 2
