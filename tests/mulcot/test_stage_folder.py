"""A stage's folder: one process at a time, and a refusal where it cannot be written to."""

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from mulcot.files import sweep
from mulcot.locks import InUseError, locked
from mulcot.stage_folder import StageFolder
from mulcot.types import InputError


def test_a_folder_is_held_by_one_and_free_afterwards(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "run" / "stage")
    with folder.held():
        with pytest.raises(InUseError, match=rf"stage: another process works .*\(process {os.getpid()} on"):
            StageFolder(folder.path).held().__enter__()
        folder.begin("key", fresh=True)
        assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "command.key"]
    with folder.held():
        pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    def hold() -> None:
        held = locked(tmp_path / ".lock", "taken")
        held.__enter__()
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=hold)
    process.start()
    process.join(30)
    assert process.exitcode == 9
    with locked(tmp_path / ".lock", "taken"):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"


def _as_another_user(path: Path, queue: "multiprocessing.Queue[str]") -> None:
    if os.getuid() == 0:
        os.setuid(65534)  # who is nobody may write nowhere here
    try:
        with StageFolder(path).held():
            queue.put("held")
    except InputError as error:
        queue.put(str(error))


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_of_another_user_is_refused_in_one_line(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "run" / "stage"
    (path if there else path.parent).mkdir(parents=True)
    for folder in (path, *path.parents):
        if folder.is_relative_to(tmp_path) and folder.exists():
            folder.chmod(0o555)
    for folder in tmp_path.parents:  # pytest keeps its folders from others
        if os.getuid() == 0 and "pytest-of" in str(folder):
            folder.chmod(0o755)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_as_another_user, args=(path, queue))
    process.start()
    said = queue.get(timeout=30)
    process.join(30)
    tmp_path.chmod(0o755)
    (tmp_path / "run").chmod(0o755)
    assert f"{path} cannot be written to (Permission denied)" in said
    assert "belongs to user" in said
    assert "name another --run_dir, or gain access" in said


def test_the_owner_of_a_folder_is_told_of_where_it_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mulcot.stage_folder.write_atomic", full)
    with pytest.raises(InputError, match=r"stage cannot be written to \(No space left on device\): make room$"):
        StageFolder(tmp_path / "stage").begin("key", fresh=False)
    monkeypatch.setattr("mulcot.stage_folder.os.getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(InputError, match=r"device\); .* belongs to user \d+, this is user \d+: make room$"):
        StageFolder(tmp_path / "stage").begin("key", fresh=False)


def test_only_temporary_files_of_ours_are_swept(tmp_path: Path) -> None:
    ours = [".0123456789abcdef.tmp", ".last.ckpt.0123abcd.tmp", ".posts.0123456789ab.tmp"]
    others = ["0123456789abcdef.tmp", ".last.ckpt.tmp", ".0123456789abcdeg.tmp", "last.ckpt", ".lock"]
    for name in (*ours, *others):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".0123456789abcdee.tmp").mkdir()
    sweep(tmp_path.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, ".0123456789abcdee.tmp"])
