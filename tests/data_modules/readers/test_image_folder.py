import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_modules.readers import ImageFolder
from data_modules.readers.row_log import RowLog
from mulcot.types import SPLITS, InputError, Post

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
UNNAMED = "pictures that no row names"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures in each of four folders, and the same at the top."""
    for where in (".", "train", "dev", "test", "other"):
        (tmp_path / where / "sub").mkdir(parents=True)
        for name in ("a.png", "b.JPG", "sub/c.webp"):
            (tmp_path / where / name).write_bytes(b"x")
    return tmp_path


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def row(name: str = "a.png", **more: Any) -> dict[str, Any]:
    return {"file_name": name, "text": "Hail in May", **more}


def refusal(source: ImageFolder, split: Any = "train") -> str:
    with pytest.raises(InputError) as caught:
        source.read(split)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(source.folder), "FOLDER")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_for_each_split(folder: Path, suffix: str) -> None:
    tables = [
        save(folder / "train" / f"metadata{suffix}", [row(label="negative"), row("./sub/c.webp", label="neutral")]),
        save(folder / "dev" / f"metadata{suffix}", [row()]),
        save(folder / "test" / f"metadata{suffix}", [row(), row("b.JPG")]),
    ]  # fmt: skip
    source = ImageFolder(folder)
    assert source.splits() == SPLITS
    assert sorted(source.files()) == sorted(tables)
    assert source.read("train") == [
        Post("train/a.png", "Hail in May", folder / "train" / "a.png", label="negative"),
        Post("train/sub/c.webp", "Hail in May", folder / "train" / "sub" / "c.webp", label="neutral"),
    ]
    assert source.read("val") == [Post("val/a.png", "Hail in May", folder / "dev" / "a.png")]
    assert [post.id for post in source.read("test")] == ["test/a.png", "test/b.JPG"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_table_with_a_column_of_splits(folder: Path, suffix: str) -> None:
    names = ["test", "train", "validation", "valid", "train"]
    pictures = ["a.png", "b.JPG", "sub/c.webp", "train/a.png", "dev/a.png"]
    rows = [row(picture, split=name) for picture, name in zip(pictures, names, strict=True)]
    table = save(folder / f"metadata{suffix}", rows)
    source, log = ImageFolder(folder), RowLog()
    assert source.splits() == SPLITS
    assert source.files() == [table]
    posts = {split: source.read(split, log) for split in SPLITS}
    assert {split: [post.id for post in found] for split, found in posts.items()} == {
        "train": ["train/b.JPG", "train/dev/a.png"],
        "val": ["val/sub/c.webp", "val/train/a.png"],
        "test": ["test/a.png"],
    }
    assert posts["train"][1] == Post("train/dev/a.png", "Hail in May", folder / "dev" / "a.png")
    assert log.counts == {UNNAMED: 5 * 3 - 5}


@pytest.mark.parametrize("name", ["val", "validation", "valid", "dev"])
def test_the_names_of_the_validation_split(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.png").write_bytes(b"x")
    save(tmp_path / name / "metadata.csv", [row()])
    source = ImageFolder(tmp_path)
    assert source.splits() == ("val",)
    assert source.read("val")[0].id == "val/a.png"


def test_pictures_that_no_row_names_are_counted(folder: Path) -> None:
    save(folder / "train" / "metadata.csv", [row("./a.png", label=""), row("sub/c.webp", label="happy")])
    save(folder / "test" / "metadata.csv", [row("a.png"), row("b.JPG"), row("sub/c.webp")])
    for name in (".hidden.png", "notes.txt", "sub/d.gif"):
        (folder / "train" / name).write_bytes(b"x")
    source, log = ImageFolder(folder), RowLog("skip")
    assert len(source.read("train", log)) == 1
    assert log.counts == {UNNAMED: 2}  # b.JPG and sub/d.gif; a wrong row names its picture all the same
    source.read("test", log)
    assert log.counts == {UNNAMED: 2}


def test_columns_labels_and_the_rest_are_those_of_a_table(folder: Path) -> None:
    content = "nr;picture;tweet;mood;part\n7;b.JPG;Änderung;0;dev\n8;a.png;Äh;1;train\n9;a.png;Äh;;train\n"
    (folder / "metadata.csv").write_bytes(content.encode("latin-1"))
    source = ImageFolder(
        folder,
        columns={"id": "nr", "image": "picture", "text": "tweet", "label": "mood", "split": "part"},
        labels=["bad", "good"],
        label_names={"0": "bad", "1": "good"},
        encoding="latin-1",
        delimiter=";",
    )
    assert source.read("val") == [Post("7", "Änderung", folder / "b.JPG", label="bad")]
    assert [(post.id, post.label) for post in source.read("train")] == [("8", "good"), ("9", None)]
    save(folder / "train" / "metadata.jsonl", [row("gone.png", aspect="weather")])
    (folder / "metadata.csv").unlink()
    free = ImageFolder(folder, columns={"id": None}, aspect_in_text=False, check_images=False)
    assert free.read("train") == [Post("train-1", "Hail in May", folder / "train" / "gone.png", "weather")]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (row("a.png"), "field 'id': the id 'train/a.png' already stands at FOLDER/train/metadata.jsonl, line 1"),
        (row("./a.png"), "field 'id': the id 'train/a.png' already stands at"),
        (row("gone.png"), "field 'file_name': there is no picture 'gone.png' in FOLDER/train"),
        (row("../a.png"), "field 'file_name': '../a.png' goes up with '..'"),
        (row("a.png;b.JPG"), "field 'file_name': 2 pictures; a post has one"),
        (row(None), "field 'file_name': it is missing"),
        ({"text": "x"}, "field 'file_name': it is missing"),
        (row("b.JPG", text=""), "field 'text': it is empty"),
        (row("b.JPG", label="happy"), "field 'label': unknown label 'happy'"),
    ],
)
def test_a_wrong_row_is_named(folder: Path, values: dict[str, Any], message: str) -> None:
    save(folder / "train" / "metadata.jsonl", [row(), values])
    assert f"FOLDER/train/metadata.jsonl, line 2, {message}" in refusal(ImageFolder(folder))


def test_a_missing_column_is_named(folder: Path) -> None:
    save(folder / "train" / "metadata.csv", [{"image": "a.png", "text": "x"}])
    message = refusal(ImageFolder(folder))
    assert message.startswith("FOLDER/train/metadata.csv: there is no column 'file_name', the columns are 'image', 'te")
    assert message.endswith("columns: {image: NAME}")
    assert "no column 'nr'" in refusal(ImageFolder(folder, columns={"image": "image", "id": "nr"}))
    save(folder / "other" / "metadata.csv", [row()])
    assert "metadata.csv: there is no column 'split', the columns are 'file_name'" in refusal(
        ImageFolder(folder / "other")
    )


def test_ids_that_are_asked_for_must_be_there(folder: Path) -> None:
    save(folder / "train" / "metadata.jsonl", [row(id="1"), row("b.JPG")])
    assert [post.id for post in ImageFolder(folder).read("train")] == ["1", "train/b.JPG"]
    assert "line 2, field 'id': it is missing" in refusal(ImageFolder(folder, columns={"id": "id"}))


def test_an_id_stands_in_one_split_only(folder: Path) -> None:
    save(folder / "train" / "metadata.jsonl", [row(id="1")])
    save(folder / "dev" / "metadata.csv", [row(id="2"), row("b.JPG", id="1")])
    wanted = "FOLDER/dev/metadata.csv, line 3, field 'id': the id '1' already stands at FOLDER/train/metadata.jsonl, "
    for split in ("train", "val"):
        assert refusal(ImageFolder(folder), split).startswith(f"{wanted}line 1;")


def test_an_id_stands_in_one_split_of_one_table_only(folder: Path) -> None:
    given = [("1", "train"), ("2", "test"), ("1", "test"), ("2", "train")]
    save(folder / "metadata.csv", [row(id=name, split=split) for name, split in given])
    source, log = ImageFolder(folder), RowLog("skip")
    for split in ("train", "test"):
        assert "metadata.csv, line 4, field 'id': the id '1' already stands at" in refusal(source, split)
    assert [[post.id for post in source.read(split, log)] for split in source.splits()] == [["1"], ["2"]]
    assert sorted(error.row.number for error in log.bad) == [4, 5]


def test_rows_that_say_no_split_are_listed_once(folder: Path) -> None:
    lines = [row(split="dev"), row("b.JPG", split="Train"), row("sub/c.webp"), row("sub/c.webp", split="test")]
    text = "\n".join([*(json.dumps(line) for line in lines), "{"])
    (folder / "metadata.jsonl").write_text(text)
    source, log = ImageFolder(folder), RowLog("skip")
    assert source.splits() == ("val", "test")
    for split in source.splits():
        assert (
            "FOLDER/metadata.jsonl, line 2, field 'split': unknown split 'Train'; use one of train, val, "
            in refusal(source, split)
        )
        assert len(source.read(split, log)) == 1
    assert [(error.row.number, error.field) for error in log.bad] == [(2, "split"), (3, "split"), (5, None)]
    assert log.counts == {UNNAMED: 5 * 3 - 3}


def test_a_split_that_is_not_there(folder: Path) -> None:
    save(folder / "dev" / "metadata.csv", [row()])
    assert refusal(ImageFolder(folder)) == "FOLDER: no split 'train', only val; add train/metadata.jsonl"
    source = ImageFolder(save(folder / "other" / "metadata.csv", [row(split="dev")]).parent)
    assert refusal(source, "test") == (
        "FOLDER/metadata.csv: no split 'test', only val; add a row with it in the column 'split'"
    )


def test_which_table_counts_must_be_clear(folder: Path) -> None:
    source = ImageFolder(folder)
    assert refusal(source).startswith("FOLDER: there is no table; put metadata.jsonl, .csv, .tsv or .parquet into it, ")
    assert source.files() == []
    table = save(folder / "dev" / "metadata.csv", [row()])
    (folder / "val").mkdir()
    again = save(folder / "val" / "metadata.csv", [row()])
    assert refusal(source) == (
        "FOLDER/dev/metadata.csv: FOLDER/val/metadata.csv is there as well; keep the table that counts"
    )
    again.unlink()
    other = save(folder / "dev" / "metadata.jsonl", [row()])
    assert "FOLDER/dev/metadata.csv: FOLDER/dev/metadata.jsonl is there as well" in refusal(source)
    other.unlink()
    save(folder / "metadata.csv", [row(split="dev")])
    assert refusal(source) == (
        "FOLDER/dev/metadata.csv: FOLDER/metadata.csv is there as well; keep the table that counts"
    )
    table.unlink()
    assert len(source.read("val")) == 1
    with pytest.raises(InputError, match=r"^folder: there is no folder .*nowhere"):
        ImageFolder(folder / "nowhere").splits()


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    save(tmp_path / "metadata.csv", [row(split="train")])
    with pytest.raises(InputError, match="columns: there is no field 'body'; the fields are id, text, image, aspect, "):
        ImageFolder(tmp_path, columns={"body": "x"}).read("train")
    with pytest.raises(InputError, match="columns: split cannot be null"):
        ImageFolder(tmp_path, columns={"split": None}).read("train")


def test_an_empty_table(folder: Path) -> None:
    (folder / "train" / "metadata.csv").write_text("file_name,text\n")
    assert refusal(ImageFolder(folder)) == "FOLDER/train/metadata.csv: it holds no posts; give a file with at least one"


def test_in_one_table_an_id_is_taken_by_a_row_that_is_kept(folder: Path) -> None:
    rows = [
        row("gone.png", id="1", split="train"),
        row(id="1", split="val"),
        row(id="1", split="train"),
        row(id="2", split="train"),
    ]
    save(folder / "metadata.jsonl", rows)
    found = {}
    for split in ("train", "val"):
        log = RowLog("skip")
        posts = ImageFolder(folder).read(split, log)
        found[split] = ([post.id for post in posts], [(error.row.number, error.field) for error in log.bad])
    assert found == {"train": (["2"], [(1, "file_name"), (3, "id")]), "val": (["1"], [])}
