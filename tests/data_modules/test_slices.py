"""Which groups a post belongs to: read by every reader that can know, carried by conversions, kept from models."""

import csv
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image

from data_modules import conversion
from data_modules.conversion import Plan, convert
from data_modules.readers import Converted, GroupedSplit, HuggingFace, ImageFolder, Mvsa, Reader, Table
from data_modules.readers.row_log import RowLog
from mulcot.demo_posts import generate
from mulcot.models import load_processor
from mulcot.predictions import Prediction
from mulcot.rows import PictureCache, RowEncoder
from mulcot.soft_labels import prompt_digest
from mulcot.types import DEFAULT_LABELS, TASKS, Answer, InputError, Post

GROUPS: list[dict[str, Any]] = [
    {"conflict": "yes", "source": 3, "checked": True},
    {"conflict": " no ", "source": 12, "checked": False},
    {"conflict": None, "source": 3, "checked": None},
]
CARRIED = [
    (("conflict", "yes"), ("source", "3"), ("checked", "yes")),
    (("conflict", "no"), ("source", "12"), ("checked", "no")),
    (("source", "3"),),
]
COLUMNS = ["conflict", "source", "checked"]


def rows(image: str = "image") -> list[dict[str, Any]]:
    return [{"id": f"p{n}", "text": f"May {n}", image: "a.png", "label": "neutral"} | GROUPS[n] for n in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    return tmp_path


def jsonl(path: Path, given: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def table(folder: Path, **options: Any) -> Table:
    return Table({"test": jsonl(folder / "test.jsonl", rows())}, folder, **options)


def image_folder(folder: Path) -> ImageFolder:
    (folder / "pictures" / "test").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(folder / "pictures" / "test" / "a.png")
    jsonl(folder / "pictures" / "test" / "metadata.jsonl", rows("file_name"))
    return ImageFolder(folder / "pictures", slices=COLUMNS)


def one_table(folder: Path) -> ImageFolder:
    Image.new("RGB", (8, 6)).save(folder / "a.png")
    jsonl(folder / "metadata.jsonl", [row | {"split": "test"} for row in rows("file_name")])
    return ImageFolder(folder, slices=COLUMNS)


def hugging_face(folder: Path) -> HuggingFace:
    columns = {key: [row[key] for row in rows()] for key in rows()[0]}
    columns["conflict"] = [1, 0, -1]
    kinds = {key: Value("string") for key in columns} | {"source": Value("int64"), "checked": Value("bool")}
    kinds["conflict"] = ClassLabel(names=["no", "yes"])
    datasets.disable_progress_bars()
    Dataset.from_dict(columns, features=Features(kinds), split="test").save_to_disk(folder / "saved")
    return HuggingFace(str(folder / "saved"), image_root=folder, slices=COLUMNS)


@pytest.mark.parametrize("make", [lambda folder: table(folder, slices=COLUMNS), image_folder, one_table, hugging_face])
def test_a_reader_carries_the_columns_that_it_is_told(folder: Path, make: Any) -> None:
    assert [post.slices for post in make(folder).read("test")] == CARRIED


def test_a_table_without_slices_reads_none(folder: Path) -> None:
    assert {post.slices for post in table(folder).read("test")} == {()}


def test_cells_of_csv_are_texts_and_an_empty_one_names_no_group(folder: Path) -> None:
    with (folder / "test.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows()[0]))
        writer.writeheader()
        writer.writerows(rows())
    read = Table({"test": folder / "test.csv"}, folder, slices=COLUMNS).read("test")
    assert [dict(post.slices) for post in read] == [
        {"conflict": "yes", "source": "3", "checked": "True"},
        {"conflict": "no", "source": "12", "checked": "False"},
        {"source": "3"},
    ]


@pytest.mark.parametrize(
    ("slices", "value", "said"),
    [
        (["mood"], "x", "there is no column 'mood', the columns are 'id', 'text', 'image', 'label'"),
        (["label", "label"], "x", "slices: ('label', 'label') is no list of columns, each named once"),
        ("conflict", "x", "slices: 'conflict' is no list of columns"),
        (["source"], 0.5, "test.jsonl, line 1, field 'source': '0.5' is no text, whole number or truth value"),
        (["source"], ["x"], "is no text, whole number or truth value"),
        (["source"], "  ", "field 'source'"),
    ],
)
def test_what_is_wrong_with_a_slice_is_one_line(folder: Path, slices: Any, value: Any, said: str) -> None:
    jsonl(folder / "test.jsonl", [{**row, "source": value} for row in rows()])
    with pytest.raises(InputError) as refused:
        Table({"test": folder / "test.jsonl"}, folder, slices=slices).read("test")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def mvsa(folder: Path, *lines: str, annotators: int = 1) -> Mvsa:
    (folder / "data").mkdir(exist_ok=True)
    for number in range(1, len(lines) + 1):
        (folder / "data" / f"{number}.jpg").write_bytes(b"x")
        (folder / "data" / f"{number}.txt").write_text(f"post {number}")
    head = "\t".join(["ID", *["text,image"] * annotators])
    numbered = [f"{number}\t{line}" for number, line in enumerate(lines, 1)]
    (folder / "labelResultAll.txt").write_text("\n".join([head, *numbered]) + "\n")
    return Mvsa(folder)


def test_an_mvsa_post_conflicts_where_the_merged_labels_differ(tmp_path: Path) -> None:
    single = mvsa(tmp_path, "positive,positive", "neutral,negative", "positive,negative", "positive,neutral")
    assert {post.id: dict(post.slices) for post in single.read_all()} == {
        "1": {"conflict": "no"},
        "2": {"conflict": "yes"},
        "4": {"conflict": "yes"},  # the third is dropped
    }
    multiple = mvsa(
        tmp_path,
        "positive,neutral\tpositive,positive\tneutral,positive",  # the majorities are equal
        "neutral,positive\tneutral,positive\tpositive,positive",
        annotators=3,
    )
    assert [post.slices for post in multiple.read_all()] == [(("conflict", "no"),), (("conflict", "yes"),)]


def test_a_new_split_keeps_them(tmp_path: Path) -> None:
    lines = ["positive,positive", "neutral,negative"] * 10
    source = mvsa(tmp_path, *lines)
    for number in range(1, 21):  # equal pictures and near copies would be one group
        (tmp_path / "data" / f"{number}.jpg").write_bytes(bytes([number]))
        (tmp_path / "data" / f"{number}.txt").write_text(" ".join(f"word{number * 100 + at}" for at in range(9)))
    split = GroupedSplit(source, train=10, val=5)
    found = {post.id: dict(post.slices)["conflict"] for name in ("train", "val", "test") for post in split.read(name)}
    assert found == {str(number): "no" if number % 2 else "yes" for number in range(1, 21)}


def test_an_embedded_post_conflicts_where_its_clause_and_its_picture_differ() -> None:
    tones = {"sunny": "positive", "grey": "neutral", "stormy": "negative"}
    posts = generate("test", 300, 0)
    assert {post.is_conflict for post in posts if post.kind == "conflict"} == {True}
    assert {post.is_conflict for post in posts if post.kind == "agree"} == {False}
    for post in posts:
        said = next(clause.tone for clause in post.clauses if clause.aspect == post.aspect)
        assert post.is_conflict == (said != tones[post.scene.mood])


def test_the_embedded_files_have_a_column_of_it(embedded: Path) -> None:
    written = [json.loads(line) for line in (embedded / "posts" / "posts" / "test.jsonl").read_text().splitlines()]
    facts = {post.post_id: post for post in generate("test", 12, 0)}
    assert {row["id"]: row["conflict"] for row in written} == {
        name: "yes" if post.is_conflict else "no" for name, post in facts.items()
    }
    assert {row["conflict"] for row in written} == {"yes", "no"}


@pytest.mark.parametrize("embed", [False, True])
def test_a_conversion_carries_them(folder: Path, embed: bool) -> None:
    source = table(folder, slices=COLUMNS)
    read = converted(source, folder / "out", embed)
    assert [post.slices for post in read] == CARRIED
    assert [post.slices for _, post in Converted(folder / "out").entries("test", RowLog())] == CARRIED
    assert [hash(post) for post in read]
    assert [post.slices for post in pickle.loads(pickle.dumps(read))] == CARRIED
    whole = converted(Converted(folder / "out"), folder / "again", embed)
    assert [post.slices for post in whole] == CARRIED


def test_a_conversion_without_any_has_posts_without_any(folder: Path) -> None:
    assert [post.slices for post in converted(table(folder), folder / "out")] == [(), (), ()]


def test_a_conversion_of_before_there_were_slices_is_still_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = table(folder)
    now = conversion._table
    monkeypatch.setattr(conversion, "_table", lambda *args: now(*args).drop_columns(["slices"]))
    convert(source, plan(source, folder / "out"), RowLog())
    assert "slices" not in pq.read_schema(folder / "out" / "test-00000.parquet").names
    assert [(post.id, post.label, post.slices) for post in Converted(folder / "out").read("test")] == [
        (f"p{number}", "neutral", ()) for number in range(3)
    ]


def test_a_prediction_says_the_groups_of_its_post() -> None:
    post = Post("7", "Hail", Path("a.png"), slices=(("conflict", "yes"), ("source", "3")))
    answer = Answer("7", "neutral", {"neutral": 1.0}, None, "", "no reply")
    assert Prediction.of(post, answer).slices == {"conflict": "yes", "source": "3"}


def plan(source: Reader, out: Path, embed: bool = False) -> Plan:
    root = None if embed else source.image_root
    return Plan(out=out, image_root=root, model=None, labels=DEFAULT_LABELS, image_size=None)


def converted(source: Reader, out: Path, embed: bool = False) -> Any:
    convert(source, plan(source, out, embed), RowLog())
    return Converted(out).read("test")


def test_no_model_and_no_key_sees_them(folder: Path, embedded: Path) -> None:
    encoder = RowEncoder(load_processor(str(embedded / "models" / "student")), DEFAULT_LABELS)
    plain = Post("7", "Hail in May", folder / "a.png", "May", "negative")
    marked = replace(plain, slices=(("conflict", "yes"),))
    for task in TASKS:
        one, other = encoder.row(plain, task, "{}"), encoder.row(marked, task, "{}")
        assert (one.head, one.tail_ids, one.response_ids) == (other.head, other.tail_ids, other.response_ids)
        assert prompt_digest(one) == prompt_digest(other)
    pictures = PictureCache(encoder, budget_mb=1)
    assert pictures.head(encoder.row(plain, "reasoning")) is pictures.head(encoder.row(marked, "reasoning"))
