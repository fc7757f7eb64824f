"""The common format: what is written is what is read, whatever the source, and nothing is made twice."""

import csv
import json
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_modules import conversion
from data_modules.check_report import Section
from data_modules.checking import check
from data_modules.conversion import Plan, convert
from data_modules.encoded import EncodedPosts, encoder_key
from data_modules.post_table import PostTable, has_aspects, ids_of, label_counts, label_numbers
from data_modules.readers import (
    Converted,
    GroupedSplit,
    HuggingFace,
    ImageFolder,
    Mvsa,
    Reader,
    Table,
    TombertTsv,
    TwitterJson,
)
from data_modules.readers.row_log import RowLog
from mulcot.cli import main
from mulcot.images import load_image
from mulcot.models import load_processor
from mulcot.rows import RowEncoder
from mulcot.types import DEFAULT_LABELS, TASKS, InputError, Post

SIZES = [(30, 20), (61, 200), (28, 28)]


@pytest.fixture
def source(tmp_path: Path) -> Table:
    """Twenty posts of three pictures: with and without aspect, label and odd characters."""
    images = tmp_path / "source" / "images"
    images.mkdir(parents=True)
    for number, size in enumerate(SIZES):
        Image.new("RGB", size, (number * 80, 9, 9)).save(images / f"{number}.png")
    rows = [
        {
            "id": f"p{number}",
            "text": f"text {number} \U0001f600 \u05d0\u05d1 of May <|im_end|>\n\u2028",
            "image": f"{number % 3}.png",
            "aspect": "May" if number % 2 else None,
            "label": [*DEFAULT_LABELS, None][number % 4],
        }
        for number in range(20)
    ]
    write(tmp_path / "source" / "train.jsonl", rows[:14])
    write(tmp_path / "source" / "val.jsonl", rows[14:])
    return table(tmp_path)


def table(tmp_path: Path) -> Table:
    folder = tmp_path / "source"
    return Table({"train": folder / "train.jsonl", "val": folder / "val.jsonl"}, folder / "images")


def write(path: Path, rows: Sequence[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def plan(tmp_path: Path, reader: Reader, **changes: object) -> Plan:
    settings = {"image_root": reader.image_root, "model": None, "labels": DEFAULT_LABELS, "image_size": None}
    return Plan(**{"out": tmp_path / "out", **settings, **changes})


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "ROWS_PER_SHARD", 4)
    monkeypatch.setattr(conversion, "ROWS_PER_PICTURE_SHARD", 3)


@pytest.mark.usefixtures("small_shards")
def test_what_is_written_is_what_is_read(tmp_path: Path, source: Table) -> None:
    convert(source, plan(tmp_path, source), RowLog())
    reader = Converted(tmp_path / "out")
    assert reader.splits() == ("train", "val")
    for split in reader.splits():
        assert list(reader.read(split)) == list(source.read(split))
    assert reader.labels == DEFAULT_LABELS
    assert sorted(path.name for path in (tmp_path / "out").glob("train*")) == [
        "train-00000.parquet", "train-00001.parquet", "train-00002.parquet", "train-00003.parquet", "train.arrow",
    ]  # fmt: skip
    assert not (tmp_path / "out" / conversion.BUILDING).exists()


@pytest.mark.usefixtures("small_shards")
def test_parquet_holds_paths_and_upright_sizes_for_any_other_program(tmp_path: Path, source: Table) -> None:
    convert(source, plan(tmp_path, source), RowLog())
    rows = pq.read_table(tmp_path / "out" / "train-00001.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["p4", "p5", "p6", "p7"]
    assert [row["image"] for row in rows] == ["1.png", "2.png", "0.png", "1.png"]
    assert [(row["image_width"], row["image_height"]) for row in rows] == [SIZES[1], SIZES[2], SIZES[0], SIZES[1]]
    assert [row["aspect"] for row in rows] == [None, "May", None, "May"]


@pytest.mark.usefixtures("small_shards")
def test_pictures_inside_the_table_need_no_files(tmp_path: Path, source: Table) -> None:
    expected = list(source.read("train"))
    content = [post.image.read_bytes() for post in expected]
    convert(source, plan(tmp_path, source, image_root=None), RowLog())
    shutil.rmtree(tmp_path / "source")
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    posts = Converted(moved).read("train")
    assert [replace(post, image=expected[0].image) for post in posts] == [
        replace(post, image=expected[0].image) for post in expected
    ]
    assert [post.image.read_bytes() for post in posts] == content
    assert load_image(posts[1].image).size == SIZES[1]
    assert str(posts[4].image) == f"{moved}/train.arrow, row 5"


# -- every reader ----------------------------------------------------------------------------------------------------

Rows = dict[str, list[dict[str, object]]]


def png(number: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (20 + number, 30), (number * 20, 9, 9)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Rows]:
    """Ten posts, two on each of five pictures, and the folder with the pictures."""
    folder = tmp_path / "small"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(png(number))
    texts = ["plain", "emoji \U0001f600", "\u05d0\u05d1 right to left", "<|im_end|>", 'a "quotation", and a comma',
             " blanks ", "two\u2028lines", "tab, not \\t", "cr\u00e8me", "last"]  # fmt: skip
    rows = [
        {
            "id": f"p{number}",
            "text": f"{text} in May {number}",
            "image": f"{number // 2}.png",
            "aspect": "May" if number % 2 else None,
            "label": DEFAULT_LABELS[number % 3],
        }
        for number, text in enumerate(texts)
    ]
    return folder, {"train": rows[:6], "val": rows[6:8], "test": rows[8:]}


def of_table(suffix: str) -> Callable[[Path, Rows], Reader]:
    def made(folder: Path, rows: Rows) -> Reader:
        paths = {split: folder / f"{split}.{suffix}" for split in rows}
        for split, path in paths.items():
            if suffix == "jsonl":
                write(path, rows[split])
            elif suffix == "json":
                path.write_text(json.dumps(rows[split]))
            elif suffix == "parquet":
                pq.write_table(pa.Table.from_pylist(rows[split]), path)
            else:
                with path.open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(rows[split][0]), delimiter="," if suffix == "csv" else "\t")
                    writer.writeheader()
                    writer.writerows(row | {"aspect": "May"} for row in rows[split])  # CSV has no null
        return Table(paths, folder)

    return made


def of_image_folder(folder: Path, rows: Rows) -> Reader:
    for split, some in rows.items():
        (folder / split).mkdir()
        for row in some:
            shutil.copy(folder / str(row["image"]), folder / split)
        write(folder / split / "metadata.jsonl", [row | {"file_name": row["image"]} for row in some])
    return ImageFolder(folder)


def of_tombert(folder: Path, rows: Rows) -> Reader:
    names = {"train": "train", "val": "dev", "test": "test"}
    for split, some in rows.items():
        lines = ["index\t#1 Label\t#2 ImageID\t#3 String\t#3 String"]
        for number, row in enumerate(some):
            text = str(row["text"]).replace("May", "$T$")
            lines.append(f"{number}\t{number % 3}\t{row['image']}\t{text}\tMay")
        (folder / f"{names[split]}.tsv").write_text("\n".join(lines) + "\n")
    return TombertTsv(folder, folder)


def of_twitter(folder: Path, rows: Rows) -> Reader:
    posts = [row | {"id": number, "aspect": "May", "image_path": row["image"]}
             for number, row in enumerate(row for some in rows.values() for row in some)]  # fmt: skip
    (folder / "val.json").write_text(json.dumps(posts))
    return GroupedSplit(TwitterJson(folder / "val.json", folder), 6, 2, 2)


def of_mvsa(folder: Path, rows: Rows) -> Reader:
    (folder / "data").mkdir()
    lines = ["ID\ttext,image"]
    for number, row in enumerate(row for some in rows.values() for row in some):
        (folder / "data" / f"{number}.txt").write_bytes(str(row["text"]).encode() + b"\r\n")
        shutil.copy(folder / str(row["image"]), folder / "data" / f"{number}.jpg")
        lines.append(f"{number}\t{row['label']},{row['label']}")
    (folder / "labelResultAll.txt").write_bytes("\r\n".join([*lines, ""]).encode())
    return GroupedSplit(Mvsa(folder), 6, 2, 2)


def of_hugging_face(inside: bool) -> Callable[[Path, Rows], Reader]:
    def made(folder: Path, rows: Rows) -> Reader:
        kind = datasets.Image() if inside else datasets.Value("string")
        text = datasets.Value("string")
        features = datasets.Features({"id": text, "text": text, "image": kind, "aspect": text, "label": text})
        parts = {}
        for split, some in rows.items():
            pictures = [{"bytes": (folder / str(row["image"])).read_bytes(), "path": None} for row in some]
            given = [row | ({"image": picture} if inside else {}) for row, picture in zip(some, pictures, strict=True)]
            parts[split] = datasets.Dataset.from_list(given, features=features)
        datasets.disable_progress_bars()
        datasets.DatasetDict(parts).save_to_disk(folder / "saved")
        datasets.enable_progress_bars()
        return HuggingFace(str(folder / "saved"), image_root=None if inside else folder)

    return made


def of_converted(embedded: bool) -> Callable[[Path, Rows], Reader]:
    def made(folder: Path, rows: Rows) -> Reader:
        first = of_table("jsonl")(folder, rows)
        root = None if embedded else first.image_root
        convert(first, Plan(folder / "first", root, None, DEFAULT_LABELS, None), RowLog())
        return Converted(folder / "first")

    return made


READERS: dict[str, Callable[[Path, Rows], Reader]] = {
    **{f"Table {suffix}": of_table(suffix) for suffix in ("jsonl", "json", "csv", "tsv", "parquet")},
    "ImageFolder": of_image_folder,
    "TombertTsv": of_tombert,
    "TwitterJson": of_twitter,
    "Mvsa": of_mvsa,
    "HuggingFace, pictures inside": of_hugging_face(True),
    "HuggingFace, pictures beside": of_hugging_face(False),
    "Converted": of_converted(False),
    "Converted, pictures inside": of_converted(True),
}


def by_content(posts: Sequence[Post], apart: bool) -> list[object]:
    """The posts as they are compared: where pictures lie inside a table, by their bytes."""
    return [(replace(post, image=Path()), post.image.read_bytes()) if apart else post for post in posts]


def counted(reader: Reader) -> list[Section]:
    """What `check` counts, without the names of pictures."""
    sections = check(reader, labels=reader.labels).sections
    return [
        replace(section, counts={}, pictures=replace(section.pictures, distinct=0, shared=0, duplicates=None))
        for section in sections
    ]


def assert_converts_to_itself(reader: Reader, out: Path, embed: bool) -> None:
    before = {split: list(reader.read(split)) for split in reader.splits()}
    root = None if embed else reader.image_root
    convert(reader, Plan(out, root, None, tuple(reader.labels), None), RowLog())
    converted = Converted(out)
    assert converted.splits() == reader.splits()
    for split, posts in before.items():
        after = converted.read(split)
        assert by_content(after, embed) == by_content(posts, embed)
        log = RowLog()
        assert [post for _, post in converted.entries(split, log)] == list(after)
        assert not log.left_out()
    assert [replace(section, pictures=None) for section in counted(converted)] == [
        replace(section, pictures=None, dropped={}) for section in counted(reader)
    ]
    if not embed:  # inside a table each post has a picture of its own
        assert [section.pictures for section in counted(converted)] == [s.pictures for s in counted(reader)]


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("embed", [False, True], ids=["beside", "embedded"])
@pytest.mark.parametrize("name", READERS)
def test_every_reader_converts_to_equal_posts_and_counts(small: tuple[Path, Rows], name: str, embed: bool) -> None:
    reader = READERS[name](*small)
    if reader.image_root is None and not embed:
        pytest.skip("its pictures have no files")
    assert_converts_to_itself(reader, small[0].parent / "again", embed)


def test_twitter_2015_converts_to_equal_posts(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "twitter15"
    reader = GroupedSplit(TwitterJson(folder / "val.json", folder / "Images"), 900, 111, 111)
    assert_converts_to_itself(reader, tmp_path / "out", embed=False)


def test_the_dev_file_of_tombert_converts_to_equal_posts(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "tsv").mkdir()
    (tmp_path / "tsv" / "dev.tsv").symlink_to(shared_data / "twitter15" / "tsv" / "twitter2015" / "dev.tsv")
    reader = TombertTsv(tmp_path / "tsv", shared_data / "twitter15" / "Images")
    assert_converts_to_itself(reader, tmp_path / "out", embed=False)


def test_the_mvsa_sample_converts_to_equal_posts(shared_data: Path, tmp_path: Path) -> None:
    reader = GroupedSplit(Mvsa(shared_data / "mvsa_sample"), 0.8, 0.1)
    assert_converts_to_itself(reader, tmp_path / "out", embed=False)


# -- where it lies ---------------------------------------------------------------------------------------------------


def test_a_data_set_moves_together_with_its_pictures(tmp_path: Path, source: Table) -> None:
    convert(source, plan(tmp_path, source, out=tmp_path / "source" / "converted"), RowLog())
    (tmp_path / "source").rename(tmp_path / "moved")
    posts = Converted(tmp_path / "moved" / "converted").read("val")
    assert posts[0].image == tmp_path / "moved" / "images" / "2.png"
    other = Converted(tmp_path / "moved" / "converted", pictures=tmp_path / "pictures")
    assert other.read("val")[0].image == tmp_path / "pictures" / "2.png"


@pytest.mark.usefixtures("small_shards")
def test_an_interrupted_conversion_goes_on(tmp_path: Path, source: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    make = conversion._make

    def counted(plan, split, number, key, entries):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(f"{split}-{number}")
        return make(plan, split, number, key, entries)

    monkeypatch.setattr(conversion, "_make", counted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, plan(tmp_path, source), RowLog())
    assert made == ["train-0", "train-1", "train-2"]
    with pytest.raises(InputError, match="is no converted data set"):
        Converted(tmp_path / "out").read("train")

    made[:] = ["x"]
    Image.new("RGB", (10, 10)).save(tmp_path / "source" / "images" / "0.png")  # shards 0 to 3 of train hold it
    second = table(tmp_path)
    monkeypatch.setattr(conversion, "_make", lambda *args: (made.append(f"{args[1]}-{args[2]}"), make(*args))[1])
    convert(second, plan(tmp_path, second), RowLog())
    assert made[1:] == ["train-0", "train-1", "train-2", "train-3", "val-0", "val-1"], "the picture changed"
    assert list(Converted(tmp_path / "out").read("train")) == list(source.read("train"))


@pytest.mark.usefixtures("small_shards")
def test_finished_shards_are_kept_and_so_is_what_they_left_out(
    tmp_path: Path, source: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source" / "images" / "1.png").write_bytes(b"no picture")
    make = conversion._make
    stop = 2

    def stopped(plan, split, number, key, entries):
        if number == stop:
            raise KeyboardInterrupt
        return make(plan, split, number, key, entries)

    monkeypatch.setattr(conversion, "_make", stopped)
    with pytest.raises(KeyboardInterrupt):
        convert(source, plan(tmp_path, source), RowLog("skip"))
    stop = -1
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    log = RowLog("skip")
    convert(source, plan(tmp_path, source), log)
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done} == done
    assert len(done) == 2
    assert [(error.row.path.name, error.row.number) for error in log.bad] == [
        *(("train.jsonl", number) for number in (2, 5, 8, 11, 14)), *(("val.jsonl", number) for number in (3, 6)),
    ]  # fmt: skip
    assert "holds no JPEG, PNG, WEBP or GIF data" in str(log.bad[0])
    assert ids_of(Converted(tmp_path / "out").read("val")) == ["p14", "p15", "p17", "p18"]


class KilledError(Exception):
    """Stands for a kill."""


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Lets a conversion end in the middle of a split."""
    make = conversion._make

    def stopped(plan, split, at, key, entries):
        if at == number:
            raise KilledError
        return make(plan, split, at, key, entries)

    monkeypatch.setattr(conversion, "_make", stopped)


def counted_shards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are made from now on."""
    made: list[str] = []
    make = conversion._make
    monkeypatch.setattr(conversion, "_make", lambda *args: (made.append(f"{args[1]}-{args[2]}"), make(*args))[1])
    return made


def interrupted(
    monkeypatch: pytest.MonkeyPatch, reader: Reader, given: Plan, log: RowLog | None = None, at: int = 2
) -> None:
    with monkeypatch.context() as patched:
        stop_at(patched, at)
        with pytest.raises(KilledError):
            convert(reader, given, log or RowLog(), replaces=True)


@pytest.mark.usefixtures("small_shards")
def test_a_resumed_conversion_names_the_places_of_today(
    tmp_path: Path, source: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source" / "images" / "1.png").write_bytes(b"no picture")
    interrupted(monkeypatch, source, plan(tmp_path, source), RowLog("skip"))
    path = tmp_path / "source" / "train.jsonl"
    path.write_text("\n\n" + path.read_text())
    log = RowLog("skip")
    convert(table(tmp_path), plan(tmp_path, source), log)
    assert [error.row.number for error in log.bad if error.row.path == path] == [4, 7, 10, 13, 16]


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("damage", ["lost", "cut", "its note torn"])
def test_a_finished_shard_that_is_not_there_any_more_is_made_again(
    tmp_path: Path, source: Table, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    interrupted(monkeypatch, source, plan(tmp_path, source))
    path = tmp_path / "out" / "train-00000.parquet"
    if damage == "its note torn":
        path = tmp_path / "out" / ".building" / "train-00000.json"
    path.unlink() if damage == "lost" else path.write_bytes(path.read_bytes()[:-1])
    made = counted_shards(monkeypatch)
    convert(source, plan(tmp_path, source), RowLog())
    assert made == ["train-0", "train-2", "train-3", "val-0", "val-1"]
    assert list(Converted(tmp_path / "out").read("train")) == list(source.read("train"))


@pytest.mark.usefixtures("small_shards")
def test_shards_of_a_source_that_got_shorter_do_not_stay(
    tmp_path: Path, source: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, source, plan(tmp_path, source))
    (tmp_path / "out" / "train-mine.parquet").write_bytes(b"")
    path = tmp_path / "source" / "train.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    convert(table(tmp_path), plan(tmp_path, source), RowLog())
    assert sorted(os.listdir(tmp_path / "out")) == [
        "dataset.json", "train-00000.parquet", "train-mine.parquet", "train.arrow",
        "val-00000.parquet", "val-00001.parquet", "val.arrow",
    ]  # fmt: skip


@pytest.mark.usefixtures("small_shards")
def test_pictures_inside_a_table_that_changed_are_converted_again(
    small: tuple[Path, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows = small
    reader = of_hugging_face(True)(folder, rows)
    given = Plan(folder / "out", None, None, DEFAULT_LABELS, None)
    interrupted(monkeypatch, reader, given, at=1)
    (folder / "0.png").write_bytes(png(9))
    shutil.rmtree(folder / "saved")
    reader = of_hugging_face(True)(folder, rows)
    convert(reader, given, RowLog())
    assert Converted(folder / "out").read("train")[0].image.read_bytes() == png(9)


# -- replacing -------------------------------------------------------------------------------------------------------


def texts(folder: Path) -> dict[str, list[str]]:
    reader = Converted(folder)
    return {split: [post.text for post in reader.read(split)] for split in reader.splits()}


def changed(tmp_path: Path) -> Table:
    """The source with other texts and one post less."""
    for name in ("train", "val"):
        path = tmp_path / "source" / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write(path, [row | {"text": f"new {row['text']}"} for row in rows[:-1]])
    return table(tmp_path)


@pytest.mark.usefixtures("small_shards")
def test_a_data_set_is_replaced_only_when_the_new_one_is_whole(
    tmp_path: Path, source: Table, embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever step of the end a kill comes before, the old data set is read, or the new one; then the work goes on.

    The steps are all that changes names in the folder: renames and what removes.
    """
    model = str(embedded / "models" / "student")
    key = encoder_key(RowEncoder(load_processor(model), DEFAULT_LABELS, None))
    given = plan(tmp_path, source, model=model, fingerprint=key)
    convert(source, given, RowLog())
    out = tmp_path / "out"
    old = texts(out)
    new_source = changed(tmp_path)
    new = {split: [post.text for post in new_source.read(split)] for split in new_source.splits()}
    assert old != new
    met = set()
    for at in range(1000):
        left = at

        def counting(call):
            def step(*args, **options):
                nonlocal left
                if left == 0:
                    raise KilledError
                left -= 1
                return call(*args, **options)

            return step

        shutil.copytree(out, tmp_path / "kept")
        with monkeypatch.context() as patched:
            for owner, name in ((os, "replace"), (Path, "unlink"), (shutil, "rmtree")):
                patched.setattr(owner, name, counting(getattr(owner, name)))
            try:
                convert(new_source, given, RowLog(), replaces=True)
            except KilledError:
                stopped = True
            else:
                stopped = False
        read = texts(out)
        assert read in (old, new)
        met.add("old" if read == old else "new")
        convert(new_source, given, RowLog(), replaces=True)
        assert texts(out) == new
        folder = Converted(out).tokens("train", key)
        assert folder is not None
        assert len(EncodedPosts.open(Converted(out).read("train"), None, folder, TASKS).lengths("reasoning")) == 13
        shutil.rmtree(out)
        (tmp_path / "kept").rename(out)
        if not stopped:
            break
    assert not stopped
    assert met == {"old", "new"}


@pytest.mark.usefixtures("small_shards")
def test_an_interrupted_replacement_goes_on_and_leaves_nothing_of_the_old(
    tmp_path: Path, source: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(source, plan(tmp_path, source), RowLog())
    old = texts(tmp_path / "out")
    new = changed(tmp_path)
    interrupted(monkeypatch, new, plan(tmp_path, new))
    assert texts(tmp_path / "out") == old
    with monkeypatch.context() as patched:
        made = counted_shards(patched)
        convert(new, plan(tmp_path, new), RowLog(), replaces=True)
    assert made == ["train-2", "train-3", "val-0", "val-1"]
    assert list(Converted(tmp_path / "out").read("train")) == list(new.read("train"))
    assert sorted(path.name for path in (tmp_path / "out").glob("*.parquet")) == [
        *(f"train-0000{number}-b.parquet" for number in range(4)), "val-00000-b.parquet", "val-00001-b.parquet",
    ]  # fmt: skip
    convert(new, plan(tmp_path, new), RowLog(), replaces=True)
    assert len(list((tmp_path / "out").glob("train-0000?.parquet"))) == 4
    assert not list((tmp_path / "out").glob("*-b.parquet"))


def test_without_leave_a_data_set_is_not_replaced(tmp_path: Path, source: Table) -> None:
    convert(source, plan(tmp_path, source), RowLog())
    with pytest.raises(InputError, match="it holds a converted data set"):
        convert(source, plan(tmp_path, source), RowLog())


@pytest.mark.usefixtures("small_shards")
def test_worker_processes_write_the_same(tmp_path: Path, source: Table) -> None:
    one = convert(source, plan(tmp_path, source), RowLog())
    two = convert(source, plan(tmp_path, source, out=tmp_path / "two"), RowLog(), workers=2)
    assert one.splits == two.splits


def test_without_skipping_the_first_wrong_picture_stops(tmp_path: Path, source: Table) -> None:
    (tmp_path / "source" / "images" / "2.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"train\.jsonl, line 3, field 'image': .*2\.png: the picture file is empty; "):
        convert(source, plan(tmp_path, source), RowLog())


def test_a_source_without_splits_says_so_itself(tmp_path: Path, source: Table) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"Mvsa: this source has no splits.*GroupedSplit"):
        convert(Mvsa(tmp_path), plan(tmp_path, source), RowLog())
    with pytest.raises(InputError, match=r"train\.tsv"):
        convert(TombertTsv(tmp_path / "empty", tmp_path), plan(tmp_path, source), RowLog())
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.parametrize("splits", [("val",), ("train", "val")])
def test_a_split_of_which_nothing_is_left_is_an_error(
    tmp_path: Path, source: Table, splits: tuple[str, ...], embedded: Path
) -> None:
    left = {"train": 14, "val": 6}
    for split in splits:
        rows = [{"id": f"{split}{n}", "text": "x" * (n % 2), "image": "broken.png"} for n in range(left[split])]
        write(tmp_path / "source" / f"{split}.jsonl", rows)
    (tmp_path / "source" / "images" / "broken.png").write_bytes(b"no picture")
    log = RowLog("skip")
    model = str(embedded / "models" / "student")
    key = encoder_key(RowEncoder(load_processor(model), DEFAULT_LABELS, None))
    with pytest.raises(InputError) as caught:
        convert(table(tmp_path), plan(tmp_path, source, model=model, fingerprint=key), log)
    count = sum(left[split] for split in splits)
    assert f"no posts for {', '.join(splits)}: left out were {count} wrong rows; mend them" in str(caught.value)
    assert len(log.bad) == count
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.usefixtures("small_shards")
def test_a_shard_of_which_nothing_is_left_is_left_out(tmp_path: Path, source: Table, embedded: Path) -> None:
    rows = [json.loads(line) for line in (tmp_path / "source" / "train.jsonl").read_text().splitlines()]
    for number in range(4, 8):
        rows[number]["image"] = "broken.png"
    (tmp_path / "source" / "images" / "broken.png").write_bytes(b"no picture")
    write(tmp_path / "source" / "train.jsonl", rows)
    model = str(embedded / "models" / "student")
    key = encoder_key(RowEncoder(load_processor(model), DEFAULT_LABELS, None))
    convert(table(tmp_path), plan(tmp_path, source, model=model, fingerprint=key), RowLog("skip"))
    assert len(Converted(tmp_path / "out").read("train")) == 10
    assert not (tmp_path / "out" / "train-00001.parquet").exists()


@pytest.mark.parametrize("given", ["im", "absolute", "./im/../im"])
def test_one_image_root_may_be_written_in_several_ways(
    tmp_path: Path, source: Table, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.chdir(tmp_path / "source")
    Path("im").symlink_to("images")
    reader = Table({"train": Path("train.jsonl")}, Path("im"))
    root = tmp_path / "source" / "im" if given == "absolute" else Path(given)
    convert(reader, plan(tmp_path, reader, image_root=root), RowLog())
    assert Converted(tmp_path / "out").read("train")[0].image.read_bytes() == (Path("im") / "0.png").read_bytes()
    with pytest.raises(InputError, match=r"its picture im/0\.png is not in images; give --image_root"):
        convert(reader, plan(tmp_path, reader, image_root=Path("images"), out=tmp_path / "two"), RowLog())


# -- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("image_size", [None, (56, 56)])
def test_stored_tokens_are_those_of_the_model(
    tmp_path: Path, source: Table, embedded: Path, image_size: tuple[int, int] | None
) -> None:
    model = str(embedded / "models" / "student")
    encoder = RowEncoder(load_processor(model), DEFAULT_LABELS, image_size)
    key = encoder_key(encoder)
    convert(source, plan(tmp_path, source, model=model, fingerprint=key, image_size=image_size), RowLog())
    reader = Converted(tmp_path / "out")
    assert reader.tokens("train", "another model") is None
    folder = reader.tokens("train", key)
    assert folder is not None
    posts = reader.read("train")
    stored = EncodedPosts.open(posts, encoder, folder, TASKS)
    for number, post in enumerate(source.read("train")):
        for task in TASKS:
            expected = encoder.row(post, task)
            assert stored.row(posts[number], number, task) == expected
            head = len(encoder.head(expected).per_token["input_ids"])
            assert stored.lengths(task)[number] == head + len(expected.tail_ids)


# -- the table -------------------------------------------------------------------------------------------------------


def test_a_table_answers_as_a_list_does(tmp_path: Path, source: Table) -> None:
    convert(source, plan(tmp_path, source), RowLog())
    posts = Converted(tmp_path / "out").read("train")
    plain = list(source.read("train"))
    assert isinstance(posts, PostTable)
    assert (posts[-1], list(posts[2:9:3]), len(posts)) == (plain[-1], plain[2:9:3], 14)
    with pytest.raises(IndexError):
        posts[14]
    assert label_counts(posts) == label_counts(plain) == {"positive": 4, "neutral": 4, "negative": 3, None: 3}
    assert ids_of(posts) == ids_of(plain)
    assert has_aspects(posts)
    first = PostTable(posts.path, posts.image_root, limit=3)
    assert (
        label_numbers(first, DEFAULT_LABELS).tolist() == label_numbers(plain[:3], DEFAULT_LABELS).tolist() == [0, 1, 2]
    )
    assert list(pickle.loads(pickle.dumps(first))) == plain[:3]


def test_a_lost_arrow_file_is_made_again_from_parquet(tmp_path: Path, source: Table) -> None:
    convert(source, plan(tmp_path, source), RowLog())
    for damage in ("lost", "torn"):
        path = tmp_path / "out" / "train.arrow"
        path.unlink() if damage == "lost" else path.write_bytes(path.read_bytes()[:100])
        assert list(Converted(tmp_path / "out").read("train")) == list(source.read("train"))


# -- what is refused -------------------------------------------------------------------------------------------------


def test_a_changed_parquet_file_is_refused(tmp_path: Path, source: Table) -> None:
    convert(source, plan(tmp_path, source), RowLog())
    with (tmp_path / "out" / "train-00000.parquet").open("ab") as file:
        file.write(b"!")
    with pytest.raises(InputError, match=r"train-00000\.parquet: it was changed after the conversion; run"):
        Converted(tmp_path / "out").read("train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2, and this mulcot reads 1"),
        (
            {"splits": {"train": [{"file": "../x.parquet", "rows": 1, "bytes": 1, "sha256": ""}]}},
            "is no name of a file",
        ),
        ({"tokens": {"k": "../../tokens"}}, "is no name of a file"),
        ({"splits": {"train": [{"file": "x"}]}}, "it is damaged"),
        ({"more": 1}, "it is damaged"),
    ],
)
def test_a_damaged_or_hostile_description_is_refused(
    tmp_path: Path, source: Table, change: dict[str, object], message: str
) -> None:
    convert(source, plan(tmp_path, source), RowLog())
    path = tmp_path / "out" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message) as caught:
        Converted(tmp_path / "out").read("train")
    assert "dataset.json" in str(caught.value)


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/passwd", "out.png"])
def test_a_table_that_leads_out_of_the_image_root_is_refused(tmp_path: Path, source: Table, name: str) -> None:
    convert(source, plan(tmp_path, source), RowLog())
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "source" / "images" / "out.png").symlink_to(tmp_path / "secret.png")
    path = tmp_path / "out" / "train.arrow"
    with pa.memory_map(str(path)) as mapped:
        rows = pa.ipc.open_file(mapped).read_all()
        changed = rows.set_column(2, rows.schema.field(2), pa.array([name] * rows.num_rows))
        with pa.OSFile(str(tmp_path / "new"), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(changed)
    (tmp_path / "new").replace(path)
    with pytest.raises(InputError, match=r"train\.arrow, row 1, field 'image': "):
        Converted(tmp_path / "out").read("train")[0]


# -- the verb --------------------------------------------------------------------------------------------------------


def verb(tmp_path: Path, *options: object) -> int:
    folder = tmp_path / "source"
    files = json.dumps({"train": str(folder / "train.jsonl"), "val": str(folder / "val.jsonl")})
    given = ["--posts", "Table", "--posts.files", files, "--posts.image_root", str(folder / "images")]
    return main(["data", "convert", *given, "--out", str(tmp_path / "out"), *map(str, options)])


@pytest.mark.usefixtures("source")
def test_the_verb_writes_once_and_replaces_when_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb(tmp_path) == 0
    said = capsys.readouterr().out
    assert "20 posts (train 14, val 6) in" in said
    assert "posts/s" in said
    assert f"init_args: {{folder: {tmp_path}/out}}" in said.replace("\n", "")
    assert verb(tmp_path) == 1
    assert "it holds a converted data set; give --fresh to replace it" in capsys.readouterr().err
    assert verb(tmp_path, "--fresh") == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "dataset.json").unlink()
    assert verb(tmp_path) == 1
    assert "which no conversion made" in capsys.readouterr().err
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("source")
def test_the_verb_lists_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (tmp_path / "source" / "train.jsonl").read_text().splitlines()]
    rows[3]["label"] = "glad"
    rows[5]["text"] = ""
    write(tmp_path / "source" / "train.jsonl", rows)
    assert verb(tmp_path, "--on_bad_row", "skip") == 0
    assert "left out: 2 wrong rows (label 1, text 1), listed in" in capsys.readouterr().out.replace("\n", " ")
    listed = [json.loads(line) for line in (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()]
    assert [(row["line"], row["field"]) for row in listed] == [(4, "label"), (6, "text")]
    assert ids_of(Converted(tmp_path / "out").read("train"))[:4] == ["p0", "p1", "p2", "p4"]


@pytest.mark.usefixtures("source")
def test_labels_are_kept_in_the_order_of_the_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A reader whose codes order the default labels anew must not change the prompts that tokens are stored for."""
    coded = ["--posts.labels", '["negative", "neutral", "positive"]']
    assert verb(tmp_path, *coded) == 0
    assert Converted(tmp_path / "out").labels == DEFAULT_LABELS
    assert verb(tmp_path, *coded, "--fresh", "--labels", '["neutral", "positive", "other", "negative"]') == 0
    assert Converted(tmp_path / "out").labels == ("neutral", "positive", "other", "negative")
    assert verb(tmp_path, *coded, "--fresh", "--labels", '["neutral", "positive"]') == 1
    assert "--labels: negative of the source is missing; name every label" in capsys.readouterr().err
