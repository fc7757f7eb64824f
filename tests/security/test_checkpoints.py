"""Hostile checkpoints: each is refused by name, runs nothing, makes no file, and takes little memory."""

from __future__ import annotations

import io
import os
import pickle
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mulcot.checkpoints import DurableCheckpointIO, read_checkpoint
from mulcot.types import InputError


class Calls:
    """Pickled as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def good(path: Path) -> Path:
    torch.save({"state_dict": {"w": torch.ones(1000)}, "mulcot": {}}, path)
    return path


def rewritten(path: Path, change: Callable[[str, bytes], tuple[str, bytes]], kind: int = zipfile.ZIP_STORED) -> None:
    """The archive of a good checkpoint with its members changed."""
    good(path)
    with zipfile.ZipFile(path) as archive:
        members = [change(member.filename, archive.read(member)) for member in archive.infolist()]
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members:
            archive.writestr(name, content)


def added(path: Path, member: str | zipfile.ZipInfo) -> None:
    good(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, "/etc/passwd")


def link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


def zipped(path: Path, content: Any) -> None:
    torch.save({"state_dict": content}, path)


def legacy(path: Path, content: Any) -> None:
    buffer = io.BytesIO()
    torch.save({"state_dict": content}, buffer, _use_new_zipfile_serialization=False)
    path.write_bytes(buffer.getvalue())


def nested(mark: Path, depth: int = 50) -> Any:
    """A call deep inside of harmless containers and behind harmless calls."""
    content: Any = Calls(os.mkdir, str(mark))
    for _ in range(depth):
        content = {"a": [(content,)]}
    return content


def wrong_size(name: str, content: bytes) -> tuple[str, bytes]:
    """1,000 numbers become 2**31 - 1."""
    return name, content.replace(b"M\xe8\x03", b"J\xff\xff\xff\x7f") if name.endswith("data.pkl") else content


def wrong_offset(name: str, content: bytes) -> tuple[str, bytes]:
    """The tensor begins at element 255 of its storage and still has 1,000 elements."""
    changed = content.replace(b"QK\x00M\xe8\x03", b"QK\xffM\xe8\x03")
    assert not name.endswith("data.pkl") or changed != content
    return name, changed


def swollen(ending: str) -> Callable[[str, bytes], tuple[str, bytes]]:
    """400 MB of zeros in place of a member, 400 kB once they are compressed."""
    return lambda name, content: (name, bytes(400_000_000) if name.endswith(ending) else content)


HOSTILE: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "os.system in an archive": (lambda path, mark: zipped(path, Calls(os.system, f"mkdir {mark}")), "would run code"),
    "os.system in a bare pickle": (
        lambda path, mark: path.write_bytes(pickle.dumps({"a": Calls(os.system, f"mkdir {mark}")}, protocol=2)),
        "would run code",
    ),
    "eval, nested in an old file": (lambda path, mark: legacy(path, Calls(eval, "1")), "would run code"),
    "a call within containers": (lambda path, mark: zipped(path, nested(mark)), "would run code"),
    "a huge declared tensor": (lambda path, mark: rewritten(path, wrong_size), "damaged"),
    "zip bomb in a storage": (
        lambda path, mark: rewritten(path, swollen("data/0"), zipfile.ZIP_DEFLATED), "is compressed"),
    "zip bomb in the pickle": (
        lambda path, mark: rewritten(path, swollen("data.pkl"), zipfile.ZIP_DEFLATED), "is compressed"),
    "a path out of the archive": (lambda path, mark: added(path, "../../../ran"), "leads out of it"),
    "an absolute path": (lambda path, mark: added(path, "/tmp/ran"), "leads out of it"),
    "a Windows path": (lambda path, mark: added(path, "..\\ran"), "leads out of it"),
    "a link": (lambda path, mark: added(path, link("good/link")), "is a link"),
    "wrong storage offsets": (lambda path, mark: rewritten(path, wrong_offset), "damaged"),
    "10 TB of zeros": (lambda path, mark: zipped(path, Calls(bytearray, 10**13)), "bytearray"),
    "2 GB of zeros": (lambda path, mark: zipped(path, Calls(bytearray, 2 << 30)), "bytearray"),
    "17 million empty lists": (
        lambda path, mark: rewritten(path, lambda name, content: (
            name, b"\x80\x02" + b"]" * (17 << 20) + b"." if name.endswith("data.pkl") else content)),
        "its pickle has"),
    "no dictionary": (lambda path, mark: torch.save([torch.ones(3)], path), "not a checkpoint but a list"),
    "a pipe": (lambda path, mark: os.mkfifo(path), "no regular file"),
    "a device": (lambda path, mark: path.symlink_to("/dev/zero"), "no regular file"),
    "a folder": (lambda path, mark: path.mkdir(), "no regular file"),
}  # fmt: skip


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint_is_refused(name: str, mmap: bool, tmp_path: Path, measured: Any) -> None:
    path, mark = tmp_path / "last.ckpt", tmp_path / "ran"
    write, words = HOSTILE[name]
    write(path, mark)

    def read() -> int:
        with pytest.raises(InputError, match=r"last\.ckpt") as caught:
            read_checkpoint(path, mmap=mmap)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        return 0

    outcome = measured(read)
    assert (outcome.code, outcome.errors) == (0, [])
    assert outcome.peak_mb < 100
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("verb", ["export", "infer", "fit", "test"])
def test_every_verb_that_takes_a_checkpoint_refuses_it(
    verb: str, embedded: Path, tmp_path: Path, refused: Any, bomb: Any
) -> None:
    path = tmp_path / "hostile.ckpt"
    zipped(path, bomb)
    picture = next((embedded / "posts" / "posts" / "images").iterdir())
    stage = [
        "--config",
        "student.yaml",
        "--run_dir",
        embedded,
        "--stage",
        "hostile",
        "--data.init_args.soft_labels=null",
    ]
    stage += ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--model.init_args.lambda_soft=0"]
    stage += ["--losses.kl=null", "--data.init_args.rationales=null", "--data.init_args.references=null"]
    arguments: dict[str, list[Any]] = {
        "export": ["export", "--model", path, "--out", tmp_path / "out"],
        "infer": ["infer", "--model", path, "--image", picture, "--text", "fine"],
        "fit": ["fit", *stage, "--model.init_args.pretrained", path],
        "test": ["test", *stage, "--ckpt_path", path],
    }
    refused(*arguments[verb], name="hostile.ckpt", limit_mb=300)
    assert not bomb.mark.exists()


def test_what_is_refused_when_it_is_read_is_not_saved(tmp_path: Path) -> None:
    plugin = DurableCheckpointIO()
    with pytest.raises(TypeError, match="bytearray"):
        plugin.save_checkpoint({"state": bytearray(b"abc")}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


ORIGIN = {"pretrained": "", "lora": None, "freeze_vision": False, "labels": ["a", "b"], "image_size": None}


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (5, "does not say pretrained"),
        ({}, "does not say pretrained"),
        (ORIGIN | {"pretrained": 7}, "pretrained: "),
        (ORIGIN | {"labels": 7}, "labels: "),
        (ORIGIN | {"lora": {"rank": 1}}, "lora"),
        (ORIGIN | {"lora": {"r": 10**9}}, "lora"),
        (ORIGIN | {"lora": [1]}, "lora"),
        (ORIGIN | {"image_size": [-1, 5]}, "image_size"),
        (ORIGIN | {"image_size": [10**9, 5]}, "image_size"),
        (ORIGIN | {"pretrained": "SELF"}, "it is its own base"),
    ],
)
def test_what_a_checkpoint_says_of_its_model_is_checked(origin: Any, words: str, tmp_path: Path, refused: Any) -> None:
    path = tmp_path / "odd.ckpt"
    if isinstance(origin, dict) and origin.get("pretrained") == "SELF":
        origin = origin | {"pretrained": str(path)}
    torch.save({"state_dict": {}, "mulcot": origin}, path)
    assert words in refused("export", "--model", path, "--out", tmp_path / "out", name="odd.ckpt")
