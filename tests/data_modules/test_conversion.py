"""The common format: what is written is what is read, whatever the source, and nothing is made twice."""

import json
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_modules import conversion
from data_modules.conversion import Plan, convert
from data_modules.encoded import EncodedPosts, encoder_key
from data_modules.post_table import PostTable, has_aspects, ids_of, label_counts, label_numbers
from data_modules.readers import Converted, Reader, Table
from data_modules.readers.row_log import RowLog
from mulcot.cli import main
from mulcot.images import load_image
from mulcot.models import load_processor
from mulcot.rows import RowEncoder
from mulcot.types import DEFAULT_LABELS, TASKS, InputError

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


@pytest.mark.usefixtures("small_shards")
def test_worker_processes_write_the_same(tmp_path: Path, source: Table) -> None:
    one = convert(source, plan(tmp_path, source), RowLog())
    two = convert(source, plan(tmp_path, source, out=tmp_path / "two"), RowLog(), workers=2)
    assert one.splits == two.splits


def test_without_skipping_the_first_wrong_picture_stops(tmp_path: Path, source: Table) -> None:
    (tmp_path / "source" / "images" / "2.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"train\.jsonl, line 3, field 'image': .*2\.png: the picture file is empty; "):
        convert(source, plan(tmp_path, source), RowLog())


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
