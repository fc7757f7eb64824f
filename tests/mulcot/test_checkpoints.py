"""Checkpoints: whole or absent, and never a way to run code."""

import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mulcot.checkpoints import DurableCheckpointIO, newest_good, read_checkpoint
from mulcot.types import InputError, MissingInputError


@pytest.fixture
def plugin() -> DurableCheckpointIO:
    return DurableCheckpointIO()


def state(step: int) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"w": torch.full((1000,), float(step))}, "name": "run", "lrs": [0.1]}


def test_what_is_saved_comes_back(plugin: DurableCheckpointIO, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "last.ckpt"
    plugin.save_checkpoint(state(3), path)
    loaded = plugin.load_checkpoint(str(path), weights_only=False)
    assert torch.equal(loaded["state_dict"]["w"], torch.full((1000,), 3.0))
    assert (loaded["global_step"], loaded["name"], loaded["lrs"]) == (3, "run", [0.1])
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.ckpt", "sha256.json"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_folder_for_temporary_files_is_not_used(
    plugin: DurableCheckpointIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))  # whoever writes there fails
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    plugin.save_checkpoint(state(1), tmp_path / "last.ckpt")
    assert plugin.load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "sha256.json"]


def test_a_failed_save_keeps_the_old_file(
    plugin: DurableCheckpointIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    plugin.save_checkpoint(state(1), path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"last\.ckpt: no room .*No space.* needs 4,000 bytes .* [\d,]+ are free"):
            plugin.save_checkpoint(state(2), path)
    assert plugin.load_checkpoint(path)["global_step"] == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "sha256.json"]


def test_what_could_not_be_loaded_safely_is_not_saved(plugin: DurableCheckpointIO, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    plugin.save_checkpoint(state(1), path)
    with pytest.raises(TypeError, match=r"last\.ckpt.*PosixPath"):
        plugin.save_checkpoint(state(2) | {"hyper_parameters": {"root": Path("data")}}, path)
    assert plugin.load_checkpoint(path)["global_step"] == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "sha256.json"]


def test_leftovers_of_a_killed_save_go_with_the_next(plugin: DurableCheckpointIO, tmp_path: Path) -> None:
    path = tmp_path / "epoch=1 [best].ckpt"
    (tmp_path / f".{path.name}.0123abcd.tmp").write_bytes(b"half")
    other = tmp_path / ".last.ckpt.0123abcd.tmp"
    other.write_bytes(b"of another file")
    plugin.save_checkpoint(state(1), path)
    assert sorted(tmp_path.iterdir()) == sorted([path, other, tmp_path / "sha256.json"])


class Bomb:
    """Unpickled with code execution, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_file_is_refused_and_its_code_not_run(
    plugin: DurableCheckpointIO, tmp_path: Path, zipped: bool
) -> None:
    path, mark = tmp_path / "last.ckpt", tmp_path / "ran"
    if zipped:
        torch.save({"state_dict": Bomb(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Bomb(mark)}, protocol=2))
    with pytest.raises(InputError, match=r"last\.ckpt: refused, because loading it would run code"):
        plugin.load_checkpoint(path, weights_only=False)
    assert not mark.exists()


def test_a_torn_file_is_named(plugin: DurableCheckpointIO, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    plugin.save_checkpoint(state(1), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"last\.ckpt: the checkpoint is damaged"):
            plugin.load_checkpoint(path)
    for junk in (b"not a checkpoint", b"PK\x03\x04" + bytes(100), bytes(1000), whole[100:]):
        path.write_bytes(junk)
        with pytest.raises(InputError, match=r"last\.ckpt"):
            plugin.load_checkpoint(path)


@pytest.mark.parametrize("mmap", [False, True])
def test_a_checkpoint_is_read_without_the_plugin_and_with_its_checks(
    plugin: DurableCheckpointIO, tmp_path: Path, mmap: bool
) -> None:
    path, mark = tmp_path / "last.ckpt", tmp_path / "ran"
    plugin.save_checkpoint(state(2), path)
    assert torch.equal(read_checkpoint(path, mmap=mmap)["state_dict"]["w"], torch.full((1000,), 2.0))
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"last\.ckpt: the checkpoint is damaged"):
            read_checkpoint(path, mmap=mmap)
    torch.save({"state_dict": Bomb(mark)}, path)
    with pytest.raises(InputError, match=r"last\.ckpt: refused"):
        read_checkpoint(path, mmap=mmap)
    assert not mark.exists()
    with pytest.raises(MissingInputError, match=r"none\.ckpt"):
        read_checkpoint(tmp_path / "none.ckpt", mmap=mmap)


def test_what_is_no_checkpoint_is_named(plugin: DurableCheckpointIO, tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(InputError, match=r"tensor\.pt: not a checkpoint but a Tensor"):
        plugin.load_checkpoint(tmp_path / "tensor.pt")
    with pytest.raises(MissingInputError, match=r"none\.ckpt"):
        plugin.load_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(InputError, match="s3://bucket"):
        plugin.save_checkpoint(state(1), "s3://bucket/last.ckpt")
    with pytest.raises(TypeError, match="storage_options"):
        plugin.save_checkpoint(state(1), tmp_path / "last.ckpt", storage_options={})


def test_remove(plugin: DurableCheckpointIO, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    plugin.save_checkpoint(state(1), path)
    plugin.remove_checkpoint(path)
    plugin.remove_checkpoint(path)
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded" / "0.distcp").write_bytes(b"x")
    plugin.remove_checkpoint(str(tmp_path / "sharded"))
    assert list(tmp_path.iterdir()) == []


KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from mulcot.checkpoint_digests import is_as_written
from mulcot.checkpoints import DurableCheckpointIO, newest_good, read_checkpoint
from mulcot.stage_folder import StageFolder
torch.set_num_threads(1)
stage, kills = StageFolder(Path(sys.argv[1])), int(sys.argv[2])
plugin, draw, torn, halves, lost = DurableCheckpointIO(), random.Random(0), 0, 0, 0
def state(step):
    return {"step": step, "state_dict": {str(n): torch.full((100_000,), float(step)) for n in range(4)}}
def good(path):
    found = read_checkpoint(path)
    return all((tensor == found["step"]).all() for tensor in found["state_dict"].values()) and found["step"]
plugin.save_checkpoint(state(1), stage.last)
step = 1
for _ in range(kills):
    child = os.fork()
    if child == 0:
        with stage.held():
            while True:
                step += 1
                plugin.save_checkpoint(state(step), stage.last)
                if step % 3 == 0:
                    plugin.save_checkpoint(state(step), stage.best)
    time.sleep(draw.uniform(0.03, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    halves += any(file.suffix == ".tmp" for file in stage.last.parent.iterdir())
    torn += sum(not (is_as_written(path) and good(path)) for path in stage.last.parent.glob("*.ckpt"))
    path, refusals = newest_good(stage.checkpoints)
    lost += path != stage.last or bool(refusals) or good(path) < step
    step = good(path)
with stage.held():
    pass
left = [str(path) for path in stage.path.rglob("*") if path.suffix == ".tmp"]
left += [str(path) for path in Path(os.environ["TMPDIR"]).iterdir()]
print(json.dumps({"torn": torn, "halves": halves, "lost": lost, "left": left, "step": step}))
"""


def test_kills_while_saving_leave_the_old_or_the_new_file(tmp_path: Path) -> None:
    """With the folder for temporary files on another file system, where there is one."""
    script = tmp_path / "kills.py"
    script.write_text(KILLS)
    kills = int(os.environ.get("MULCOT_SAVE_KILLS", "15"))
    elsewhere = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=elsewhere) as temporary:
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path / "run"), str(kills)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": temporary},
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(f"\n{kills} kills while saving: {found}")
    assert found["halves"] > 0, "no kill hit a save: the test would show nothing"
    assert (found["torn"], found["lost"], found["left"]) == (0, 0, [])
    assert found["step"] > 1


# -- damage -------------------------------------------------------------------------------------------------------


def _truncated(content: bytes) -> list[bytes]:
    return [content[: len(content) * part // 20] for part in range(20)]


def _flipped(content: bytes) -> list[bytes]:
    found = []
    for part in range(1, 20):
        changed = bytearray(content)
        changed[len(content) * part // 20] ^= 1 << part % 8
        found.append(bytes(changed))
    return found


DAMAGES: dict[str, tuple[Callable[[bytes], list[bytes]], str]] = {
    "truncated": (_truncated, "the checkpoint is damaged"),
    "bits flipped": (_flipped, "(the checkpoint is damaged|refused, because)"),
    "zeroed": (lambda content: [bytes(len(content)), content[:2000] + bytes(len(content) - 2000)], "is damaged"),
    "half of another": (lambda content: [content[: len(content) // 2] * 2], "is damaged"),
    "a Git LFS pointer": (
        lambda _: [b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"],
        "a Git LFS pointer, not a checkpoint",
    ),
    "a page": (lambda _: [b"<!DOCTYPE html><html><body>404</body></html>"], "an HTML page, not a checkpoint"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_checkpoint_is_named_and_the_previous_one_is_the_newest_good(
    plugin: DurableCheckpointIO, tmp_path: Path, damage: str
) -> None:
    last = tmp_path / "last.ckpt"
    for step in (1, 2, 3):
        plugin.save_checkpoint(state(step), last)
    content = last.read_bytes()
    made, told = DAMAGES[damage]
    for number, changed in enumerate(made(content)):
        last.write_bytes(changed)
        for mmap in (False, True):
            with pytest.raises(InputError, match=f"last\\.ckpt: .*{told}"):
                read_checkpoint(last, mmap=mmap)
        path, refusals = newest_good([last, tmp_path / "previous.ckpt", tmp_path / "best.ckpt"])
        assert path == tmp_path / "previous.ckpt", number
        assert len(refusals) == 1
        assert read_checkpoint(path)["global_step"] == 2
    last.write_bytes(content)
    assert newest_good([last]) == (last, [])


def test_digests_are_those_of_other_tools_and_may_be_missing(plugin: DurableCheckpointIO, tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    plugin.save_checkpoint(state(1), last)
    digests = json.loads((tmp_path / "sha256.json").read_text())
    assert digests == {"last.ckpt": [hashlib.sha256(last.read_bytes()).hexdigest()]}
    for content in (b"", b"[]", b'{"last.ckpt": 3}', b'{"last.ckpt": ["short"]}'):
        (tmp_path / "sha256.json").write_bytes(content)
        assert read_checkpoint(last)["global_step"] == 1
    plugin.save_checkpoint(state(2), last)
    plugin.save_checkpoint(state(2), tmp_path / "best.ckpt")
    plugin.remove_checkpoint(last)
    assert "last.ckpt" not in json.loads((tmp_path / "sha256.json").read_text())
    plugin.remove_checkpoint(tmp_path / "best.ckpt")


def test_processes_that_end_just_before_the_file_gets_its_name_leave_a_known_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for step in (1, 2):
        DurableCheckpointIO().save_checkpoint(state(step), last)
    replace = os.replace

    def end(source: Path, target: Path) -> None:
        if target == last:
            raise KeyboardInterrupt
        replace(source, target)

    for step in range(3, 8):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", end)
            with pytest.raises(KeyboardInterrupt):
                DurableCheckpointIO().save_checkpoint(state(step), last)
        assert read_checkpoint(last)["global_step"] == 2
        assert read_checkpoint(previous)["global_step"] == 2
    plugin = DurableCheckpointIO()
    for step in (8, 9, 10):
        plugin.save_checkpoint(state(step), last)
        assert read_checkpoint(last)["global_step"] == step
        assert read_checkpoint(previous)["global_step"] == (step - 1 if step > 8 else 2)
    known = json.loads((tmp_path / "sha256.json").read_text())
    assert [len(known[name]) for name in ("last.ckpt", "previous.ckpt")] == [2, 2]


def test_a_full_disk_keeps_the_earlier_checkpoint_and_names_both_sizes(
    plugin: DurableCheckpointIO, tmp_path: Path
) -> None:
    last = tmp_path / "last.ckpt"
    plugin.save_checkpoint(state(1), last)
    content = last.read_bytes()
    large = state(2) | {"more": [torch.zeros(100_000)]}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # Python ignores the signal, so writing fails
    try:
        told = r"last\.ckpt: no room .*needs 404,000 bytes .* [\d,]+ are free; last\.ckpt is"
        with pytest.raises(InputError, match=told):
            plugin.save_checkpoint(large, last)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert last.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "sha256.json"]
    plugin.save_checkpoint(large, last)
    assert read_checkpoint(last)["global_step"] == 2
