"""Run folders that somebody else made to harm: a report reads them for their numbers, and obeys none of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mulcot.report.command import report
from mulcot.types import InputError


def piped(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def hole(path: Path) -> None:
    """A file of a terabyte that takes no room."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


def holds(text: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(text, encoding="utf-8")


def aliases(levels: int, last: str, each: str = "[{}]") -> str:
    """YAML of a few lines that stands for ten to the power of its levels."""
    names = [f"a{level}" for level in range(levels)]
    lines = [f"a0: &a0 {last}"]
    lines += [f"{name}: &{name} " + each.format(", ".join([f"*{before}"] * 10)) for before, name in pairwise(names)]
    return "\n".join(lines) + "\n"


FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    f"{name}: {what}": (name, make)
    for name in ("student/config-fit.yaml", "student/predictions.jsonl", "student/metrics.json",
                 "student/manifest.json", "student/probes.json", "chain.json")
    for what, make in (("a pipe", piped), ("a device", device), ("a hole", hole))
}  # fmt: skip
FILES |= {
    f"config: {what}": ("student/config-fit.yaml", holds(text))
    for what, text in {
        "aliases": aliases(9, "[x, x]"),
        "merged aliases": aliases(9, "{b: 1}", each="{{<<: [{}]}}"),
        "an alias of long text": aliases(6, "x" * 100_000),
        "an alias of a long key": "k: &k " + "x" * 400_000 + "\n" + "a: " + "{*k : " * 60 + "1" + "}" * 60 + "\n",
        "itself": "a: &a {b: *a}\n",
        "itself merged": "a: &a {<<: *a}\n",
        "nested lists": "a: " + "[" * 2000 + "]" * 2000 + "\n",
        "nested lists that are read": "a: " + "[" * 150 + "{b: 1}" + "]" * 150 + "\n",
        "a number of many digits": "a: " + "1" * 5000 + "\n",
        "a number of many hexadecimal digits": "a: 0x" + "1" * 50_000 + "\n",
        "a date that is none": "a: 2020-13-45\n",
        "no number": "a: !!int x\n",
        "no date": "a: !!timestamp x\n",
        "no truth": "a: !!bool x\n",
        "a list": "[1, 2]\n",
        "losses that are a list": "losses: [1, 2]\n",
        "losses that are a text": "losses: abc\n",
        "a loss of a class that is a list": "losses: {a: {class_path: [1]}, 1: {class_path: {}}}\n",
        "data that are a list": "data: [1]\n",
        "data that are a number": "data: 5\n",
        "arguments that are a text": "data: {init_args: posts}\n",
    }.items()
}
EITHER = {"config: merged aliases"}  # from PyYAML 6.0.4 on each key is merged once
FINE = {
    "nested lists that are read", "losses that are a list", "losses that are a text",
    "a loss of a class that is a list", "data that are a list", "data that are a number", "arguments that are a text",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_no_file_of_a_run_takes_memory_or_time(
    name: str, hand_run: Any, stage: Path, make_run: Any, written_curves: Path, outcome: Any
) -> None:
    """Neither in the run that is reported on nor in the one that it is compared with."""
    other = make_run("other")
    other.model("student", "student, distilled", 0, hand_run.gold)
    (other.folder / "student" / "config-fit.yaml").write_text("a: 1\n", encoding="utf-8")
    file, make = FILES[name]
    path = hand_run.folder / file
    make(path)
    fine = name.removeprefix("config: ") in FINE
    for arguments in ([], ["--against", str(other.folder)]):
        if arguments and "json:" in name:
            continue  # which both read alike, or only the first
        code, shown = outcome(["report", "--run_dir", str(hand_run.folder), *arguments])
        if fine or (name in EITHER and code == 0):
            assert (code, shown) == (0, "")
            continue
        if not arguments and "config" in file and code == 0:
            # What is asked of it for one run's page is said there: why there is no picture.
            assert str(path) in (hand_run.folder / "report.html").read_text(encoding="utf-8")
            continue
        assert (code, shown.count("\n")) == (1, 1), shown[:2000]
        assert str(path) in shown


@pytest.fixture
def written_curves(stage: Path) -> Path:
    """TensorBoard's file of the stage."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(stage / "tensorboard")) as writer:
        for step in range(3):
            writer.add_scalar("loss/predict/a", 1.0, step)
    return next((stage / "tensorboard").iterdir())


def record_of(length: int) -> bytes:
    """The head of a record that says it is so long, with the sum that TensorBoard checks."""
    from tensorboard.summary.writer.record_writer import masked_crc32c

    head = length.to_bytes(8, "little")
    return head + masked_crc32c(head).to_bytes(4, "little")


CURVES: dict[str, Callable[[Path], Any]] = {
    "a pipe": piped,
    "a device": device,
    "a hole": hole,
    "no record": lambda path: path.write_bytes(b"x" * 100),
    "a record of 2**40 bytes": lambda path: path.write_bytes(record_of(1 << 40)),
    "a record of 2**62 bytes": lambda path: path.write_bytes(record_of(1 << 62)),
    "a record of 2**64 bytes": lambda path: path.write_bytes(record_of((1 << 64) - 1)),
}


@pytest.mark.parametrize("name", CURVES)
def test_hostile_curves_are_told_of_and_left_out(
    name: str, hand_run: Any, stage: Path, written_curves: Path, read_page: Any, outcome: Any
) -> None:
    CURVES[name](written_curves)
    assert outcome(["report", "--run_dir", str(hand_run.folder)]) == (0, "")
    words = read_page(hand_run.folder / "report.html").words
    assert "student/tensorboard holds no curve that can be read" in words


@pytest.mark.parametrize("make", [piped, device, hole, holds(aliases(9, "[x]")), holds("a: " + "[" * 3000), holds("7")])
def test_hostile_published_numbers(
    make: Callable[[Path], Any], hand_run: Any, stage: Path, tmp_path: Path, outcome: Any
) -> None:
    make(tmp_path / "published.yaml")
    given = ["report", "--run_dir", str(hand_run.folder), "--published", str(tmp_path / "published.yaml")]
    code, shown = outcome(given)
    assert (code, shown.count("\n")) == (1, 1), shown[:2000]
    assert str(tmp_path / "published.yaml") in shown


# -- what lies outside of the run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../other/secret", "..", ".", "", "a/b", "a\0b", "a\\b", "/absolute"])
def test_a_step_of_a_chain_is_a_folder_of_the_run(name: str, hand_run: Any, stage: Path, make_run: Any) -> None:
    make_run("other").write("secret", {"kind": "data"})
    if name == "/absolute":
        name = str(hand_run.folder.parent / "other" / "secret")
    steps: list[Mapping[str, Any]] = [{"name": name, "verb": "fit", "command": ["x"]}]
    (hand_run.folder / "chain.json").write_text(json.dumps({"steps": steps}), encoding="utf-8")
    with pytest.raises(InputError, match=r"chain\.json: steps\.0\.name: "):
        report(hand_run.folder)
    assert not (hand_run.folder / "report.html").exists()


def test_folders_of_pictures_from_outside_are_told(
    hand_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page is sent around, and a run says which pictures it shows: which of them are not the run's own is said."""
    inside, outside = hand_run.folder / "images", tmp_path / "mine\x1b[31m"
    for folder in (inside, outside):
        folder.mkdir(parents=True)
        Image.new("RGB", (3, 3)).save(folder / "a.png")

    def model_that_saw(folder: Path) -> None:
        image = str(folder / "a.png")
        hand_run.model("student", "student, distilled", 0, hand_run.gold, change=lambda row: replace(row, image=image))

    words = "pictures of the page that do not lie in the run: "
    model_that_saw(inside)
    report(hand_run.folder)
    assert words not in capsys.readouterr().out
    model_that_saw(outside)
    report(hand_run.folder)
    assert f"{words}4, in {tmp_path}/mine[U+001B][31m" in capsys.readouterr().out


def test_a_link_inside_of_the_run_is_no_picture_of_the_run(
    hand_run: Any, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hand_run.folder.mkdir(parents=True)
    (hand_run.folder / "a.png").symlink_to(picture)
    image = str(hand_run.folder / "a.png")
    hand_run.model("student", "student, distilled", 0, hand_run.gold, change=lambda row: replace(row, image=image))
    report(hand_run.folder)
    assert f"do not lie in the run: 4, in {picture.parent}" in capsys.readouterr().out
