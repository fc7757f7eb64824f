"""A run made by hand, whose numbers can be worked out, and a reader for its page."""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mulcot.cli import main
from mulcot.manifests import Manifest, write_manifest
from mulcot.metrics import ClassificationReport
from mulcot.predictions import Prediction, write_predictions
from mulcot.types import Answer, Rationale, RationaleRecord

LABELS = ("positive", "neutral", "negative")
GOLD = ["positive"] * 4 + ["neutral"] * 5 + ["negative"]
SECONDS = 30
"""After so long a case counts as one that hangs."""
MEMORY = 1 << 30
"""Bytes that a case may take beyond what the process has."""
VOID = {"meta", "img", "br", "path", "circle", "link", "input", "hr"}


class Element:
    """One element of a page."""

    def __init__(self, tag: str, attributes: Mapping[str, str | None]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.children: list[Element | str] = []

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    @property
    def words(self) -> str:
        """The text with its runs of blanks made one, a line of smaller type set off by one."""
        parts = [child if isinstance(child, str) else f" {child.words} " for child in self.children]
        return " ".join("".join(parts).split())

    @property
    def value(self) -> float | None:
        """The unrounded number of a cell."""
        written = self.attributes.get("data-value")
        return None if written is None else float(written)

    def all(self, tag: str) -> list["Element"]:
        found = []
        for child in self.children:
            if isinstance(child, Element):
                found += [child] if child.tag == tag else []
                found += child.all(tag)
        return found

    def table(self, caption: str) -> list[list["Element"]]:
        """The cells of the table with this caption, row by row, the headings first."""
        (table,) = [t for t in self.all("table") if t.all("caption") and t.all("caption")[0].text == caption]
        return [[cell for cell in row.children if isinstance(cell, Element)] for row in table.all("tr")]

    def everything(self) -> list["Element"]:
        inner = [child for child in self.children if isinstance(child, Element)]
        return inner + [element for child in inner for element in child.everything()]


class Reader(HTMLParser):
    """Builds the elements, and insists that every one of them is closed."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parsed(html: str) -> Element:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == [reader.root]
    return reader.root


def rationale(prediction: str, about: str = "the post") -> Rationale:
    return Rationale(f"The text of {about}.", f"The picture of {about}.", "No conflict.", "So it is.", prediction)


def prediction(number: int, label: str, gold: str | None, sure: float = 0.8, **others: Any) -> Prediction:
    rest = (1 - sure) / 2
    probabilities = {name: sure if name == label else rest for name in LABELS}
    values = {"rationale": rationale(label), "reply": rationale(label).to_json(), "refusal": ""} | others
    text = values.pop("text", f"Post number {number}.")
    aspect, image = values.pop("aspect", "May"), values.pop("image", "nowhere.png")
    answer = Answer(values.pop("post_id", f"p{number}"), label, probabilities, **values)
    return Prediction(answer, gold, text, aspect, image)


class HandRun:
    """A run's folder that is filled stage by stage."""

    gold = GOLD
    prediction = staticmethod(prediction)
    rationale = staticmethod(rationale)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, stage: str, metrics: Mapping[str, Any], seconds: float | None = 1.0) -> Path:
        folder = self.folder / stage
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        (self.folder / "in.jsonl").touch()
        if seconds is not None:
            made: dict[str, Any] = {"verb": "fit", "key": "k" * 64, "inputs": {"in.jsonl": "a" * 64}, "outputs": {}}
            made |= {"versions": {"python": "3.11.0"}, "git_revision": None, "seed": 0}
            write_manifest(folder, Manifest(**made, started="2026-01-01T00:00:00+00:00", wall_seconds=seconds))
        return folder

    def model(
        self,
        stage: str,
        title: str,
        seed: int,
        said: Sequence[str],
        gold: Sequence[str] = GOLD,
        change: Callable[[Prediction], Prediction] = lambda p: p,
        **others: Any,
    ) -> Path:
        """A tested model that said this of the posts p0, p1, ..., with the scores that follow."""
        scores = ClassificationReport(LABELS)
        scores.update(said, gold)
        kind = "assistant" if title == "assistant" else "student"
        test = {"classification": scores.compute(), "reasoning": others.pop("reasoning", None)}
        counts = {"positive": 20, "neutral": 50, "negative": 10}
        metrics = {"kind": kind, "title": title, "seed": seed, "test": test, "train_label_counts": counts}
        folder = self.write(stage, metrics | others)
        rows = [prediction(n, label, wanted) for n, (label, wanted) in enumerate(zip(said, gold, strict=True))]
        write_predictions(folder / "predictions.jsonl", [change(row) for row in rows])
        return folder

    def teacher(self, stage: str = "teacher") -> Path:
        """A teacher with rationales for the test posts p0 to p9."""
        split = {"posts": 10, "accepted_predicted": 8, "accepted_explained": 2, "failed": {}, "requests": 12}
        splits = {"test": split | {"teacher_accuracy": 0.8}}
        folder = self.write(stage, {"kind": "teacher", "splits": splits}, 4.25)
        records = [
            RationaleRecord(
                f"p{n}", rationale(gold), "teacher-explained" if n > 7 else "teacher-predicted", "big", "hash"
            )
            for n, gold in enumerate(GOLD)
        ]
        lines = "".join(record.to_json() + "\n" for record in records)
        (folder / "rationales-test.jsonl").write_text(lines, encoding="utf-8")
        return folder


@pytest.fixture
def read_page() -> Callable[[str | Path], Element]:
    """Reads a page from its text or its file."""
    return lambda page: parsed(page.read_text(encoding="utf-8") if isinstance(page, Path) else page)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[[str], HandRun]:
    """Makes further runs."""
    return lambda name: HandRun(tmp_path / "runs" / name)


@pytest.fixture
def hand_run(tmp_path: Path) -> HandRun:
    return HandRun(tmp_path / "runs" / "hand")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (600, 300), (250, 20, 20)).save(path)
    return path


@pytest.fixture
def stage(hand_run: Any) -> Path:
    """A tested student whose posts' pictures lie in a table."""
    return hand_run.model(
        "student", "student, distilled", 0, hand_run.gold, change=lambda row: replace(row, image="t.arrow, row 1")
    )


def outcome_of(arguments: list[str]) -> tuple[int, str]:
    """Exit code and error of a command in a fork that has so much memory and time."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(writing, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        code = 99
        try:
            code = main(arguments)
        except BaseException as error:  # handed to the parent, whose test it fails
            print(repr(error), file=sys.stderr)
        sys.stderr.flush()
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as file:
        shown = file.read()
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status), f"the process died or hung: status {status}"
    return os.WEXITSTATUS(status), shown


@pytest.fixture
def outcome() -> Callable[[list[str]], tuple[int, str]]:
    """Runs a hostile case."""
    return outcome_of
