"""Checkpoints: whole or absent, and never a way to run code."""

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from mulcot.checkpoints import DurableCheckpointIO, read_checkpoint
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
import os, random, signal, sys, time
from pathlib import Path
import torch
from mulcot.checkpoints import DurableCheckpointIO, read_checkpoint
torch.set_num_threads(1)
path, kills = Path(sys.argv[1]), int(sys.argv[2])
plugin, generator, step = DurableCheckpointIO(), random.Random(0), 0
def state(step):
    return {"step": step, "state_dict": {str(n): torch.full((100_000,), float(step)) for n in range(4)}}
plugin.save_checkpoint(state(step), path)
halves = 0
for _ in range(kills):
    child = os.fork()
    if child == 0:
        while True:
            step += 1
            plugin.save_checkpoint(state(step), path)
    time.sleep(generator.uniform(0.005, 0.08))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = plugin.load_checkpoint(path)
    assert found["step"] >= step, (found["step"], step)
    step = found["step"]
    assert all((tensor == step).all() for tensor in found["state_dict"].values())
    halves += any(file.suffix == ".tmp" for file in path.parent.iterdir())
print(halves, step)
"""


def test_kills_while_saving_leave_the_old_or_the_new_file(tmp_path: Path) -> None:
    script = tmp_path / "kills.py"
    script.write_text(KILLS)
    (tmp_path / "run").mkdir()
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run" / "last.ckpt"), "10"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    interrupted, steps = map(int, done.stdout.split())
    assert interrupted > 0, "no kill hit a save: the test would show nothing"
    assert steps > 0
