import csv
import json
import tracemalloc
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jsonargparse import ArgumentParser, set_parsing_settings
from PIL import Image

from data_modules.readers import Reader, Table
from data_modules.readers.base import PostChecks
from data_modules.readers.row_log import Places, Row, RowLog
from data_modules.readers.table_files import TableRows
from mulcot.generation import parse_rationale
from mulcot.prompts import get_prompt
from mulcot.types import InputError, Post, Rationale, Split

GOOD = {"id": "1", "text": "Hail in May", "image": "a.png"}
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def save(path: Path, rows: list[dict[str, Any]], encoding: str = "utf-8") -> Path:
    """Writes rows with another library than the reader's own code; None is null, or an empty cell."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding=encoding)
    elif path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines), encoding=encoding, newline="")
    else:
        with path.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def raw(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def one(path: Path, **options: Any) -> Table:
    return Table({"val": path}, path.parent, **options)


def read(path: Path, **options: Any) -> list[Post]:
    return list(one(path, **options).read("val"))


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def lines_of(folder: Path, **splits: list[Any]) -> Table:
    for split, entries in splits.items():
        lines = [entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False) for entry in entries]
        raw(folder, f"{split}.jsonl", "\n".join(lines).encode("utf-8", "surrogatepass"))
    return Table({split: folder / f"{split}.jsonl" for split in ("train", "val", "test")}, folder)


# What a table may hold.


def test_lines_become_posts_of_either_setting(folder: Path) -> None:
    whole = {"id": 2, "text": "x\u2028y\x85z", "image": "a.png", "aspect": None, "label": None, "note": "kept out"}
    source = lines_of(folder, train=[{**GOOD, "aspect": "May", "label": "negative"}, "", whole, ""])
    first, second = source.read("train")
    assert first == Post(id="1", text="Hail in May", image=folder / "a.png", aspect="May", label="negative")
    assert second == Post(id="2", text="x\u2028y\x85z", image=folder / "a.png")
    assert (first.setting, second.setting) == ("masc", "msc")


TEXTS = [
    "plain",
    "a, b; c | d",
    'she said "no", twice: ""',
    '"quoted whole"',
    "two\nlines",
    "three\r\nlines\r\n\r\nand an empty one",
    "tab\there",
    "  blanks around  ",
    "\N{GRINNING FACE} \U0001f468\u200d\U0001f469\u200d\U0001f467 family",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "right-to-left mark \u200f and override \u202e",
    "line separator \u2028 paragraph \u2029 next line \x85 form feed \x0c",
    "\u4f60\u597d\uff0c\u4e16\u754c",
    "combining e\u0301",
    "'single' and back\\slash \\n",
    "<|im_end|> {json: [1]}",
    "#N/A",
    "null",
    "=1+1",
    "\ufeffmark inside",
]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_posts_come_from_every_format(folder: Path, suffix: str) -> None:
    labels = ["positive", "neutral", "negative", None]
    rows = [
        {
            "note": "not looked at", "label": labels[at % 4], "text": f"{text} of May", "id": f"p{at}",
            "image": "ab"[at % 2] + ".png", "aspect": "May" if at % 3 else text,
        }
        for at, text in enumerate(TEXTS)
    ]  # fmt: skip
    assert read(save(folder / f"posts{suffix}", rows)) == [
        Post(row["id"], row["text"], folder / row["image"], row["aspect"], row["label"]) for row in rows
    ]


def test_columns_have_the_names_that_the_user_gives(folder: Path) -> None:
    row = {"nr": 7, "tweet": "Hail in May", "picture": "a.png", "target": "May", "polarity": "negative", "text": "no"}
    names = {"id": "nr", "text": "tweet", "image": "picture", "aspect": "target", "label": "polarity"}
    expected = [Post("7", "Hail in May", folder / "a.png", "May", "negative")]
    for suffix in SUFFIXES:
        assert read(save(folder / f"t{suffix}", [row]), columns=names) == expected


def test_columns_that_are_null_are_not_read(folder: Path) -> None:
    row = {"text": "Hail", "image": "a.png", "id": "1", "aspect": "not in it", "label": "no label"}
    for suffix in SUFFIXES:
        assert read(save(folder / f"t{suffix}", [row]), columns={"aspect": None, "label": None}) == [
            Post("1", "Hail", folder / "a.png")
        ]


def test_rows_without_ids_are_numbered_as_errors_count_them(folder: Path) -> None:
    rows = [{"text": "one\ntwo", "image": "a.png"}, {"text": "Hail", "image": "b.png"}]
    expected = {
        ".jsonl": ["1", "2"],
        ".json": ["1", "2"],
        ".csv": ["2", "4"],
        ".tsv": ["2", "4"],
        ".parquet": ["1", "2"],
    }
    for suffix, numbers in expected.items():
        files = {split: save(folder / f"{split}{suffix}", rows) for split in ("train", "val")}
        source = Table(files, folder, columns={"id": None})
        assert [post.id for post in source.read("val")] == [f"val-{number}" for number in numbers]
        assert [post.id for post in source.read("train")] == [f"train-{number}" for number in numbers]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "gb18030", "utf-16", "utf-16-le", "latin-1"])
def test_encodings(folder: Path, suffix: str, encoding: str) -> None:
    text = "Ärger" if encoding == "latin-1" else "\u4f60\u597d \N{GRINNING FACE} Ärger"
    path = save(folder / f"t{suffix}", [{**GOOD, "text": text}, {**GOOD, "id": "2", "text": f"{text}!"}], encoding)
    named = "utf-8" if encoding == "utf-8-sig" else encoding
    assert [post.text for post in read(path, encoding=named)] == [text, f"{text}!"]


def test_a_byte_order_mark_and_crlf_change_nothing(folder: Path) -> None:
    content = b'\xef\xbb\xbf"id",text,image\r\n\r\n1,"Hail\r\nin May",a.png\r\n'
    assert read(raw(folder, "t.csv", content)) == [Post("1", "Hail\r\nin May", folder / "a.png")]
    content = b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n"
    assert read(raw(folder, "t.jsonl", content)) == [Post("1", "Hail in May", folder / "a.png")]


def test_another_delimiter_and_suffixes_in_capitals(folder: Path) -> None:
    path = raw(folder, "t.CSV", "id;text;image;;\n1;Hail, heavy;a.png;;\n")
    assert read(path, delimiter=";") == [Post("1", "Hail, heavy", folder / "a.png")]
    path = raw(folder, "t.ndjson", json.dumps(GOOD))
    assert len(read(path)) == 1


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_parquet_types_that_hold_texts(folder: Path, kind: pa.DataType) -> None:
    columns = {name: pa.array([value] * 1, type=pa.string()).cast(kind) for name, value in GOOD.items()}
    columns |= {"label": pa.array([None], type=pa.null()), "vector": pa.array([[0.5]])}
    pq.write_table(pa.table(columns), folder / "t.parquet")
    assert read(folder / "t.parquet") == [Post("1", "Hail in May", folder / "a.png")]


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int64()])
def test_whole_numbers_in_parquet(folder: Path, kind: pa.DataType) -> None:
    table = pa.table(
        {
            "id": pa.array([3, 4], type=kind),
            "label": pa.array([1, 0], type=kind),
            "text": ["x"] * 2,
            "image": ["a.png"] * 2,
        }
    )
    pq.write_table(table, folder / "t.parquet", row_group_size=1)
    posts = read(folder / "t.parquet", label_names={"0": "negative", "1": "neutral"})
    assert [(post.id, post.label) for post in posts] == [("3", "neutral"), ("4", "negative")]


def test_parquet_rows_are_numbered_over_batches(folder: Path) -> None:
    rows = [{**GOOD, "id": str(at), "text": "" if at == 2500 else "x"} for at in range(3000)]
    assert refusal(save(folder / "t.parquet", rows)).startswith(", row 2501, field 'text': it is empty")


def test_a_long_file_takes_little_memory(folder: Path) -> None:
    text = "x" * 2000
    for name in ("t.jsonl", "t.csv"):
        path = save(folder / name, [{**GOOD, "id": str(at), "text": text} for at in range(10_000)])
        tracemalloc.start()
        assert sum(len(post.text) for _, post in one(path).entries("val", RowLog())) == 20_000_000
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 6_000_000  # the ids and their places; the texts alone are 20 million


# Labels.


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_codes_stand_for_labels(folder: Path, suffix: str) -> None:
    path = save(folder / f"t{suffix}", [{**GOOD, "label": 0}, {**GOOD, "id": "2", "label": 1}])
    posts = read(path, label_names={"0": "negative", "1": "neutral"})
    assert [post.label for post in posts] == ["negative", "neutral"]


def test_spellings_stand_for_labels_and_empty_ones_are_not_known(folder: Path) -> None:
    path = raw(folder, "t.csv", "id,text,image,label\n1,x,a.png,POS\n2,x,a.png,\n3,x,a.png,Very Bad\n")
    posts = read(path, labels=["good", "bad"], label_names={"POS": "good", "Very Bad": "bad"})
    assert [post.label for post in posts] == ["good", None, "bad"]


@pytest.mark.parametrize(
    ("label", "names", "message"),
    [
        ("Positive", None, "'Positive' differs from a label in capitals or blanks; write 'positive'"),
        (" positive", None, "' positive' differs from a label in capitals or blanks; write 'positive'"),
        ("angry", None, "unknown label 'angry'; use one of 'positive', 'neutral', 'negative'"),
        (1, None, "1 is a number; say what such codes stand for (label_names: {'1': positive, ...})"),
        (1.0, None, "1.0 is a decimal number; write 1"),
        (1.0, {"1": "neutral"}, "1.0 is a decimal number; write 1"),
        (0.5, {"1": "neutral"}, "0.5 is a decimal number; write a whole number or a text"),
        (True, {"1": "neutral"}, "True is no text"),
        (3, {"0": "negative", "1": "neutral"}, "'3' is not in label_names; use one of '0' (negative), '1' (neutral)"),
        ("neutral", {"1": "neutral"}, "'neutral' is not in label_names; use one of '1' (neutral)"),
        ("1.0", {"1": "neutral"}, "'1.0' is not in label_names; use one of '1' (neutral)"),
        ("", None, "it is empty"),
        ("", {"1": "neutral"}, "it is empty"),
        (["neutral"], None, "['neutral'] is no text"),
        (["neutral"], {"1": "neutral"}, "['neutral'] is no text"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_label_that_is_none(folder: Path, suffix: str, label: Any, names: Any, message: str) -> None:
    path = save(folder / f"t{suffix}", [{**GOOD, "label": label}])
    place = ", line 1" if suffix == ".jsonl" else ", row 1"
    assert refusal(path, label_names=names).startswith(f"{place}, field 'label': {message}")


def test_labels_are_spelt_as_the_user_has_them(folder: Path) -> None:
    labels = ["Positive", "Very negative", "n/a"]
    path = save(folder / "t.jsonl", [{**GOOD, "id": label, "label": label} for label in labels])
    posts = read(path, labels=labels)
    assert [post.label for post in posts] == labels
    for label in labels:
        assert parse_rationale(Rationale("a", "b", "c", "d", label.upper()).to_json(), labels).prediction == label
        assert label in get_prompt("msc", "teacher_explain").render(posts[0], labels, label=label).text
    for spelt in ("very negative", "Very  negative", "VeryNegative", " Very negative"):
        message = refusal(save(folder / "t.jsonl", [{**GOOD, "label": spelt}]), labels=labels)
        problem = "differs from a label in capitals or blanks; write 'Very negative'"
        assert message == f", line 1, field 'label': {spelt!r} {problem}"


def test_digits_may_be_labels_themselves(folder: Path) -> None:
    path = save(folder / "t.jsonl", [{**GOOD, "label": 1}])
    assert read(path, labels=["0", "1"])[0].label == "1"


# Rows that are wrong.


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({**GOOD, "id": "2", "text": ""}, "field 'text': it is empty"),
        ({**GOOD, "id": "2", "aspect": ""}, "field 'aspect': it is empty"),
        ({**GOOD, "id": "2", "label": ""}, "field 'label': it is empty"),
        ({**GOOD, "id": "2", "label": "Positive"}, "write 'positive'"),
        ({**GOOD, "id": "2", "image": "b.jpg"}, "field 'image': there is no picture 'b.jpg'"),
        ({**GOOD, "id": "2", "image": 5}, "field 'image': 5 is no text"),
        ({**GOOD, "id": "2", "image": None}, "field 'image': it is missing"),
        ({**GOOD, "id": "2", "aspect": "June"}, "field 'aspect': 'June' does not stand in the text"),
        ({"id": "2", "image": "a.png"}, "field 'text': it is missing"),
        ({**GOOD, "id": 2.5}, "field 'id': 2.5 is no text"),
        ({**GOOD, "id": None}, "field 'id': it is missing"),
        (GOOD, "field 'id': the id '1' already stands at"),
        ("[]", ": [] is no JSON object"),
        ('{"id": }', ": no valid JSON at column 8"),
        ('{"id": "\0"}', ": it holds a NUL byte; take it out"),
        ({**GOOD, "id": "2", "text": "\0"}, "field 'text': '\\x00' holds a NUL"),
        ('{"id": "2", "text": "\\ud800", "image": "a.png"}', "half a surrogate pair"),
    ],
)
def test_a_wrong_line_is_named(folder: Path, entry: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        lines_of(folder, val=[GOOD, "", entry]).read("val")
    assert "val.jsonl, line 3" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2,x,a.png,May", ": 4 cells under a header of 5 columns; write one cell a column"),
        ("2,x,a.png,May,positive,", ": 6 cells under a header of 5 columns"),
        ("2,May,a.png,May\0,positive", ": it holds a NUL byte"),
        ("2,May,a.png,,positive", ", field 'aspect': it is empty; give it a text, or leave the column out"),
        ("2,,a.png,May,positive", ", field 'text': it is empty"),
        (",May,a.png,May,positive", ", field 'id': it is empty"),
        ("2,May,,May,positive", ", field 'image': it is empty"),
        ("1,May,a.png,May,positive", ", field 'id': the id '1' already stands at"),
        (" 2,May,a.png,May,positive", ", field 'id': blanks around the id ' 2'"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_wrong_record_is_named_and_can_be_left_out(folder: Path, suffix: str, line: str, message: str) -> None:
    content = f'id,text,image,aspect,label\n1,"two\nlines of May",a.png,May,positive\n\n{line}\n9,May,a.png,May,\n'
    path = raw(folder, f"t{suffix}", content.replace(",", "," if suffix == ".csv" else "\t"))
    assert refusal(path).startswith(f", line 5{message}")
    log = RowLog("skip")
    assert [post.id for post in one(path).read("val", log)] == ["1", "9"]
    assert [(error.row.number, error.row.unit) for error in log.bad] == [(5, "line")]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_wrong_rows_are_counted_and_listed(folder: Path, suffix: str) -> None:
    rows = [{**GOOD, "id": str(at), "label": "happy" if at % 10 == 3 else "neutral"} for at in range(300)]
    log = RowLog("skip")
    posts = one(save(folder / f"t{suffix}", rows)).read("val", log)
    assert [post.id for post in posts] == [str(at) for at in range(300) if at % 10 != 3]
    shift = 2 if suffix in (".csv", ".tsv") else 1
    assert [error.row.number for error in log.bad] == [at + shift for at in range(3, 300, 10)]
    assert {error.field for error in log.bad} == {"label"}


@pytest.mark.parametrize("value", [["a.png", "b.png", "c.png"], "a.png;b.png;c.png", "a.png|b.png| c.png",
                                   '["a.png", "b.png", "c.png"]', "['a.png', 'b.png', 'c.png']"])  # fmt: skip
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_several_pictures_of_a_post_are_refused(folder: Path, suffix: str, value: Any) -> None:
    path = save(folder / f"t{suffix}", [{**GOOD, "image": value}])
    place = {".jsonl": "line 1", ".csv": "line 2", ".tsv": "line 2"}.get(suffix, "row 1")
    remedy = "a post has one: split it into several posts or name the one that counts"
    assert refusal(path) == f", {place}, field 'image': 3 pictures; {remedy}"


def test_a_picture_whose_name_looks_like_several(folder: Path) -> None:
    (folder / "a.png;b.png").write_bytes(b"x")
    assert read(save(folder / "t.csv", [{**GOOD, "image": "a.png;b.png"}]))[0].image == folder / "a.png;b.png"
    assert read(save(folder / "t.jsonl", [{**GOOD, "image": ["a.png"]}]))[0].image == folder / "a.png"
    assert "0 pictures; a post has one" in refusal(save(folder / "t.json", [{**GOOD, "image": []}]))
    assert "there is no picture 'x; y.png'" in refusal(save(folder / "t.csv", [{**GOOD, "image": "x; y.png"}]))


# Files that are wrong.


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_missing_column_is_named_with_those_that_are_there(folder: Path, suffix: str) -> None:
    path = save(folder / f"t{suffix}", [{"id": "1", "tweet": "x", "image": "a.png"}])
    there = "the columns are 'id', 'tweet', 'image'"
    assert refusal(path) == (
        f": there is no column 'text', {there}; "
        "say in the reader's arguments which one holds the text, as columns: {text: NAME}"
    )
    for field in ("aspect", "label"):
        assert f": there is no column 'x', {there}" in refusal(path, columns={"text": "tweet", field: "x"})
    assert len(read(path, columns={"text": "tweet"})) == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_key_that_no_row_has_is_a_missing_column(folder: Path, suffix: str) -> None:
    path = save(folder / f"t{suffix}", [GOOD, {**GOOD, "id": "2", "mood": None}])
    there = "the columns are 'id', 'text', 'image'"
    assert f": there is no column 'sentiment', {there}; " in refusal(path, columns={"label": "sentiment"})
    assert len(read(path, columns={"label": "mood"})) == 2
    with pytest.raises(InputError, match="there is no column 'tweet'"):
        one(path, columns={"text": "tweet"}).read("val", RowLog("skip"))


def test_a_header_of_one_cell_has_another_delimiter(folder: Path) -> None:
    path = raw(folder, "t.csv", "id;text;image\n1;x;a.png\n")
    wanted = """, line 1: the header 'id;text;image' is one cell; name what parts the cells, such as delimiter: ";\""""
    assert refusal(path) == wanted
    path = raw(folder, "t.csv", "x" * 20_000_000)
    assert refusal(path).startswith(", line 1: no valid CSV (field larger than field limit")


def test_a_column_stands_once(folder: Path) -> None:
    path = raw(folder, "t.csv", "id,text,text,image\n1,x,y,a.png\n")
    assert refusal(path) == ": the column 'text' stands 2 times; name every column once"
    table = pa.Table.from_arrays([pa.array(["x"])] * 4, names=["id", "text", "image", "text"])
    pq.write_table(table, folder / "t.parquet")
    assert refusal(folder / "t.parquet") == ": the column 'text' stands 2 times; name every column once"


HEADER = "id,text,image\n"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (f'{HEADER}1,x,a.png\n2,"never closed,a.png\n3,x,a.png\n', 3),
        (f'{HEADER}1,"two\nlines",a.png\n2,"ab\ncd"x,a.png\n', 4),
        (f'{HEADER}1,"two\nlines","a.png\n2,x,a.png', 3),
        (f'{HEADER}1,"a ""b"" c""\n2,x,a.png\n', 2),
        (f'{HEADER}1,x,a.png\r\n2,"x" y,a.png\r\n', 3),
        (f'{HEADER}1,"{"x" * 200_000}\n', 2),
        ('id,"text,image\n1,x,a.png\n', 1),
        (f'{HEADER}"', 2),
    ],
)
@pytest.mark.parametrize("delimiter", [",", "\t", "|"])
def test_unbalanced_quotes_are_named_where_they_open(folder: Path, content: str, line: int, delimiter: str) -> None:
    path = raw(folder, "t.csv", content.replace(",", delimiter))
    message = refusal(path, delimiter=delimiter)
    assert message.startswith(f", line {line}: the quotation mark that opens a field here is not closed")
    with pytest.raises(InputError, match=f"line {line}: the quotation mark"):  # no row, so it cannot be left out
        one(path, delimiter=delimiter).read("val", RowLog("skip"))


def test_a_lone_carriage_return_is_no_line_end(folder: Path) -> None:
    assert refusal(raw(folder, "t.csv", "id,text,image\n1,a\rb,a.png\n")).startswith(
        ", line 2: a carriage return alone st"
    )
    assert read(raw(folder, "t.csv", 'id,text,image\n1,"a\rb",a.png\n'))[0].text == "a\rb"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", ""), ("t.json", ""), ("t.csv", ""), ("t.tsv", "\n \n"), ("t.json", " [ ] "),
        ("t.csv", "id,text,image\n"), ("t.tsv", "id\ttext\timage\r\n\r\n"),
    ],
)  # fmt: skip
def test_a_file_without_posts(folder: Path, name: str, content: str) -> None:
    assert refusal(raw(folder, name, content)) == ": it holds no posts; give a file with at least one"


def test_a_parquet_file_without_posts(folder: Path) -> None:
    pq.write_table(pa.schema([(name, pa.string()) for name in GOOD]).empty_table(), folder / "t.parquet")
    assert refusal(folder / "t.parquet") == ": it holds no posts; give a file with at least one"


@pytest.mark.parametrize("content", [b"", b"PAR1 no table PAR1", b"id,text,image\n"])
def test_no_parquet_file(folder: Path, content: bytes) -> None:
    assert ": no whole Parquet file (" in refusal(raw(folder, "t.parquet", content))


def test_a_damaged_parquet_file(folder: Path) -> None:
    rows = [{**GOOD, "id": str(at), "text": f"text {at * 7919}"} for at in range(5000)]
    path = save(folder / "t.parquet", rows)
    data = bytearray(path.read_bytes())
    data[100:4000] = bytes(3900)
    assert ": no whole Parquet file (" in refusal(raw(folder, "t.parquet", bytes(data)))


def test_a_parquet_column_of_another_type(folder: Path) -> None:
    path = save(folder / "t.parquet", [{**GOOD, "image": {"bytes": b"x", "path": "a.png"}}])
    message = refusal(path)
    assert message.startswith(", column 'image': it is of the type 'struct<bytes: binary, path: string>'; make it a ")


def test_a_json_file_that_is_no_list(folder: Path) -> None:
    assert ": it holds no JSON list; write [{...}, {...}]" in refusal(raw(folder, "t.json", json.dumps(GOOD)))
    assert ": no valid JSON at line 2, column 1" in refusal(raw(folder, "t.json", "[\n"))
    assert ", row 2: 1 is no JSON object" in refusal(raw(folder, "t.json", json.dumps([GOOD, 1])))


def test_a_byte_of_another_encoding_is_named(folder: Path) -> None:
    line = json.dumps(GOOD).encode()
    message = refusal(raw(folder, "t.jsonl", line + b"\n" + line.replace(b"Hail", "é".encode("latin-1")) + b"\n"))
    assert message.startswith(", line 2: byte 22 is not UTF-8; save the file as UTF-8, or name its `encoding`")
    message = refusal(raw(folder, "t.csv", b"id,text,image\n1,\xff,a.png\n"), encoding="gb18030")
    assert message.startswith(", line 2: byte 3 is not GB18030")
    assert refusal(raw(folder, "t.csv", b"\0"), encoding="utf-16").startswith(": byte 1 is not UTF-16")


def test_a_file_that_cannot_be_read(folder: Path) -> None:
    for suffix in SUFFIXES:
        assert refusal(folder / f"gone{suffix}").startswith(": there is no such file; check the path")
        (folder / f"folder{suffix}").mkdir()
        assert refusal(folder / f"folder{suffix}").startswith(": it cannot be read (Is a directory)")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
@pytest.mark.parametrize("wrong", [0, 7, 150])
def test_a_byte_of_another_encoding_is_wrong_in_its_row_alone(folder: Path, suffix: str, wrong: int) -> None:
    rows = [{**GOOD, "id": f"p{at}", "text": "Hail \u00e9"} for at in range(200)]
    path = save(folder / f"t{suffix}", rows)
    content = path.read_bytes().split(f"p{wrong}".encode(), 1)
    path.write_bytes(content[0] + f"p{wrong}".encode() + content[1].replace("\u00e9".encode(), b"\xe9", 1))
    log = RowLog("skip")
    assert [post.id for post in one(path).read("val", log)] == [f"p{at}" for at in range(200) if at != wrong]
    (error,) = log.bad
    line = wrong + (1 if suffix == ".jsonl" else 2)
    assert str(error).startswith(f"{path}, line {line}: byte ")
    assert refusal(path) == str(error).removeprefix(str(path))


def test_a_byte_of_another_encoding_in_gb18030(folder: Path) -> None:
    lines = ["\u4f60\u597d".encode("gb18030") for _ in range(5)]
    lines[2] = b"\xff" + lines[2]
    content = b"id,text,image\n" + b"".join(b'%d,"%s",a.png\n' % (at, line) for at, line in enumerate(lines))
    log = RowLog("skip")
    source = one(raw(folder, "t.csv", content), encoding="gb18030")
    assert [post.id for post in source.read("val", log)] == ["0", "1", "3", "4"]
    assert [(error.row.number, error.problem) for error in log.bad] == [(4, "byte 4 is not GB18030")]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_key_stands_once(folder: Path, suffix: str) -> None:
    written = [json.dumps({**GOOD, "id": str(at), "more": {"a": 1}}) for at in range(4)]
    written[1] = written[1].replace('{"id"', '{"label": "positive", "label": "negative", "id"', 1)
    written[2] = written[2].replace('{"a"', '{"a": 2, "a"')  # in a column that is not looked at
    content = "\n".join(written) if suffix == ".jsonl" else f"[{','.join(written)}]"
    log = RowLog("skip")
    path = raw(folder, f"t{suffix}", content)
    assert [post.id for post in one(path).read("val", log)] == ["0", "2", "3"]
    assert [error.problem for error in log.bad] == ["the key 'label' stands twice"]
    place = "line" if suffix == ".jsonl" else "row"
    assert refusal(path) == f", {place} 2: the key 'label' stands twice; write every key once"


# Ids of rows that are left out.


@pytest.fixture
def pictures(folder: Path) -> Path:
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:40])
    return folder


def read_skipping(source: Table, split: Any, decode: bool) -> tuple[list[str], list[tuple[int, str | None]]]:
    log = RowLog("skip", decode)
    texts = [post.text for post in source.read(split, log)]
    return texts, [(error.row.number, error.field) for error in log.bad]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize(("image", "decode"), [("gone.png", False), ("gone.png", True), ("broken.png", True)])
@pytest.mark.parametrize("between", [0, 300])
def test_an_id_is_taken_by_a_row_that_is_kept(
    pictures: Path, suffix: str, image: str, decode: bool, between: int
) -> None:
    others = [{**GOOD, "id": f"p{at}", "text": f"p{at}"} for at in range(between)]
    mine = [{**GOOD, "text": text} for text in ("first", "second", "third", "fourth")]
    for row in mine[:2]:
        row["image"] = image
    source = one(save(pictures / f"t{suffix}", [*mine[:2], *others, *mine[2:]]))
    texts, bad = read_skipping(source, "val", decode)
    assert texts == [*(row["text"] for row in others), "third"]
    assert sorted(bad) == [(1, "image"), (2, "image"), (between + 4, "id")]


@pytest.mark.parametrize(("image", "decode"), [("gone.png", False), ("gone.png", True), ("broken.png", True)])
def test_an_id_of_another_split_is_taken_by_a_row_that_is_kept(pictures: Path, image: str, decode: bool) -> None:
    other = {**GOOD, "id": "2"}
    source = lines_of(pictures, train=[{**GOOD, "image": image}, other], val=[GOOD, other], test=[GOOD, other])
    assert read_skipping(source, "train", decode) == (["Hail in May"], [(1, "image")])
    assert read_skipping(source, "val", decode) == (["Hail in May"], [(2, "id")])
    assert read_skipping(source, "test", decode) == ([], [(1, "id"), (2, "id")])


def test_of_two_mistakes_the_id_is_named_first(folder: Path) -> None:
    path = save(folder / "t.jsonl", [GOOD, {**GOOD, "image": "gone.png"}])
    assert refusal(path).startswith(", line 2, field 'id': the id '1' already stands at")


# Splits.


def test_an_id_stands_in_one_split_only(folder: Path) -> None:
    source = lines_of(folder, train=[GOOD], test=[{**GOOD, "id": "2"}, GOOD])
    for split in ("train", "test"):
        with pytest.raises(
            InputError, match=r"test\.jsonl, line 2, field 'id': .* already stands at .*train\.jsonl, line 1"
        ):
            source.read(split)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_split_is_read_again_for_its_ids(folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"train": ["1", "2", "3", "4"], "val": ["5", "6"], "test": ["7"]}
    files = {
        split: save(folder / f"{split}{suffix}", [{**GOOD, "id": name} for name in ids]) for split, ids in rows.items()
    }
    source = Table(files, folder)
    reads: Counter[str] = Counter()
    rows_of = source._posts.rows

    def counted(path: Path, *fields: Collection[str]) -> TableRows:
        for row, values in rows_of(path, *fields):
            reads[path.stem] += 1
            yield row, values

    monkeypatch.setattr(source._posts, "rows", counted)
    for split, ids in rows.items():
        assert [post.id for post in source.read(split)] == ids
    # The ids of the later splits are compared with the first one's before there is anybody to ask for their posts.
    assert reads == {"train": 4, "val": 2 * 2, "test": 2 * 1}


def test_ids_of_a_file_that_was_changed_are_read_anew(folder: Path) -> None:
    source = lines_of(folder, train=[GOOD], val=[{**GOOD, "id": "2"}])
    assert [post.id for split in ("train", "val") for post in source.read(split)] == ["1", "2"]
    lines_of(folder, train=[{**GOOD, "id": "20"}, {**GOOD, "id": "2"}])
    with pytest.raises(
        InputError, match=r"val\.jsonl, line 1, field 'id': .* '2' already stands at .*train\.jsonl, line 2"
    ):
        source.read("val")
    lines_of(folder, train=[{**GOOD, "id": "30"}])
    assert [post.id for post in source.read("val")] == ["2"]


@pytest.mark.parametrize(("train", "val"), [(["1"], ["2", "1"]), (["2", "1"], ["1"])])
def test_ids_that_are_known_are_refused_like_those_that_are_read(
    folder: Path, train: list[str], val: list[str]
) -> None:
    places = {
        name: [(Row(folder / name, number), id_) for number, id_ in enumerate(ids, 1)]
        for name, ids in (("train", train), ("val", val))
    }
    known: dict[Split, Places[str]] = {"val": Places()}
    for row, id_ in places["val"]:
        known["val"].put(id_, row)
    checks = PostChecks(["positive", "negative"], folder, check_images=False)
    posts = ((row, checks.post(row, id=id_, text="text", image="a.png")) for row, id_ in places["train"])
    with pytest.raises(InputError) as refused:
        list(checks.across_splits("train", posts, lambda split: places.get(split, []), RowLog(), known=known))
    there, here = val.index("1") + 1, train.index("1") + 1
    problem = f"the id '1' already stands at {folder / 'train'}, row {here}"
    assert str(refused.value).startswith(f"{folder / 'val'}, row {there}, field 'id': {problem}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_id_that_stands_again_is_listed_once(folder: Path, suffix: str) -> None:
    rows = {"train": ["1", "2"], "val": ["3", "2", "4"], "test": ["1", "5", "4"]}
    files = {
        split: save(folder / f"{split}{suffix}", [{**GOOD, "id": name} for name in ids]) for split, ids in rows.items()
    }
    source, log = Table(files, folder), RowLog("skip")
    assert [[post.id for post in source.read(split, log)] for split in rows] == [["1", "2"], ["3", "4"], ["5"]]
    first = 2 if suffix in (".csv", ".tsv") else 1
    places = [(error.row.path.stem, error.row.number - first) for error in log.bad]
    assert places == [("val", 1), ("test", 0), ("test", 2)]


def test_of_other_splits_only_the_ids_are_looked_at(folder: Path) -> None:
    raw(folder, "val.csv", "id\n7\n")
    save(folder / "train.csv", [GOOD])
    source = Table({"train": folder / "train.csv", "val": folder / "val.csv", "test": folder / "gone.csv"}, folder)
    assert [post.id for post in source.read("train")] == ["1"]
    with pytest.raises(InputError, match=r"val\.csv: there is no column 'text'"):
        source.read("val")


def test_only_the_split_that_is_read_must_be_there(folder: Path) -> None:
    source = lines_of(folder, train=[GOOD])
    assert len(source.read("train")) == 1
    assert source.files() == [folder / "train.jsonl"]
    assert source.splits() == ("train", "val", "test")
    with pytest.raises(InputError, match=r"val\.jsonl: there is no such file"):
        source.read("val")


def test_a_split_without_a_file(folder: Path) -> None:
    source = Table({"test": folder / "t.csv", "train": folder / "u.csv"}, folder)
    assert source.splits() == ("train", "test")
    message = "files: no file is named for the split 'val'; there are files for train, test: add it"
    with pytest.raises(InputError) as caught:
        source.read("val")
    assert str(caught.value) == message


# Arguments.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": {"dev": "t.csv"}}, "files: there is no split 'dev'; the splits are train, val, test"),
        ({"files": {"val": "t.csv", "test": "./t.csv"}}, "files: two splits have the same file"),
        (
            {"files": {"val": "t.xlsx"}},
            "t.xlsx: '.xlsx' is no suffix of a table; convert it to one of .jsonl, .ndjson, ",
        ),
        ({"files": {"val": "t"}}, "t: '' is no suffix of a table"),
        (
            {"columns": {"body": "x"}},
            "columns: there is no field 'body'; the fields are id, text, image, aspect, label",
        ),
        ({"columns": {"split": "x"}}, "columns: there is no field 'split'"),
        ({"columns": {"text": None}}, "columns: text cannot be null; name the column that holds it"),
        ({"columns": {"text": ""}}, "columns: text: '' is no name of a column"),
        (
            {"label_names": {"0": "bad"}},
            "label_names: '0' stands for 'bad', which is no label; use positive, neutral, ",
        ),
        ({"encoding": "utf-9"}, "encoding: there is no text encoding 'utf-9'; give one such as utf-8"),
        ({"encoding": "base64"}, "encoding: there is no text encoding 'base64'"),
        ({"delimiter": ",,"}, "delimiter: ',,' cannot part the cells of a table; give one character"),
        ({"delimiter": '"'}, "delimiter: '\"' cannot part the cells"),
        ({"delimiter": ""}, "delimiter: '' cannot part the cells"),
    ],
)
def test_a_wrong_argument_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Table(**{"files": {"val": Path("t.csv")}, "image_root": Path("."), **options}).read("val")
    assert str(caught.value).startswith(message)


def test_pictures_and_aspects_are_checked_unless_told_otherwise(folder: Path) -> None:
    path = save(folder / "t.csv", [{**GOOD, "image": "gone.png", "aspect": "weather"}])
    assert read(path, check_images=False, aspect_in_text=False)[0].aspect == "weather"
    assert "'weather' does not stand in the text" in refusal(path, check_images=False)
    assert "there is no picture 'gone.png'" in refusal(path, aspect_in_text=False)
    outside = save(folder / "u.csv", [{**GOOD, "image": "../a.png"}])
    assert "'../a.png' goes up with '..'" in refusal(outside, check_images=False)


def test_a_yaml_file_can_fill_it(folder: Path) -> None:
    raw(folder, "t.csv", "nr;text;image;label\n1;x;a.png;0\n")
    config = folder / "data.yaml"
    config.write_text(f"""
root: {folder}
reader:
  class_path: Table
  init_args:
    files: {{val: "${{root}}/t.csv"}}
    image_root: ${{root}}
    columns: {{id: nr, aspect: null}}
    labels: [good, bad]
    label_names: {{"0": bad}}
    delimiter: ";"
""")
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    parser = ArgumentParser(parser_mode="omegaconf+")
    parser.add_argument("--config", action="config")
    parser.add_argument("--root", type=str)
    parser.add_subclass_arguments(Reader, "reader")
    reader = parser.instantiate_classes(parser.parse_args([f"--config={config}"])).reader
    assert isinstance(reader, Table)
    assert reader.read("val") == [Post("1", "x", folder / "a.png", label="bad")]
