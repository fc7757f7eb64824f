"""The verbs that make the embedded default."""

import json

import pytest

from mulcot.cli import main

POST = {"id": "1", "text": "Hail again in Oslo", "aspect": "Oslo", "label": "negative", "image": "1.png"}


def error_of(capsys, *args):
    """The one line that a refused command prints."""
    assert main([str(arg) for arg in args]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("mulcot: error: ")


def verb(name, folder):
    """The command line of one of the two, without --out."""
    (folder / "corpus.jsonl").write_text(json.dumps(POST) + "\n")
    sizes = ["--train", "2", "--val", "1", "--test", "1"]
    return [name, *(sizes if name == "demo-posts" else ["--corpus", f'["{folder}/corpus.jsonl"]'])]


def test_what_posts_are_grouped_by_is_not_learnt(tmp_path):
    made = []
    for name, marks in (("plain", {}), ("grouped", {"conflict": "yes", "season": "late autumn in the north"})):
        corpus = tmp_path / f"{name}.jsonl"
        corpus.write_text(json.dumps({"id": "1", **marks, **POST}) + "\n", encoding="utf-8")
        assert main(["tiny-models", "--out", str(tmp_path / name), "--corpus", f'["{corpus}"]']) == 0
        made.append((tmp_path / name / "student" / "tokenizer.json").read_bytes())
    assert made[0] == made[1]
    assert b"Oslo" in made[0]


@pytest.mark.parametrize("name", ["demo-posts", "tiny-models"])
def test_where_no_folder_can_be_is_told_in_one_line(name, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "x", tmp_path / "file", "/proc/none", "/proc"):
        said = error_of(capsys, *verb(name, tmp_path), "--out", out)
        assert said.startswith(f"--out {out}: there can be no folder (")
        assert said.endswith("name one that can be written to")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("vocab_size", -3, "vocab_size is -3; it must be 1 or more"),
        ("vocab_size", 10**20, "vocab_size is 100000000000000000000; it must be 1000000 or less"),
        ("max_pixels", 0, "max_pixels is 0; it must be 1 or more"),
        ("seed", 10**20, "seed is 100000000000000000000; it must be below 4294967296"),
    ],
)
def test_numbers_beyond_reason_are_refused(flag, value, words, tmp_path, capsys):
    assert error_of(capsys, *verb("tiny-models", tmp_path), "--out", tmp_path / "m", f"--{flag}", value) == words
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "line 1: no valid JSON at column 2"),
        (b"[1]", "line 1: [1] is no JSON object"),
        (b'{"text": "\xff"}', "byte 11 is not UTF-8"),
        (b'{"text": "a\\ud800"}', "line 1: it holds half a surrogate pair"),
    ],
)
def test_a_corpus_that_is_none_is_refused_by_line(content, words, tmp_path, capsys):
    args = verb("tiny-models", tmp_path)
    (tmp_path / "corpus.jsonl").write_bytes(content)
    said = error_of(capsys, *args, "--out", tmp_path / "m")
    assert f"{tmp_path}/corpus.jsonl" in said
    assert words in said


def test_a_line_ends_where_json_lines_end_it(tmp_path):
    """U+2028, which Python takes for the end of a line, may stand inside a JSON text."""
    args = verb("tiny-models", tmp_path)
    (tmp_path / "corpus.jsonl").write_text(json.dumps(POST | {"text": "a\u2028Oslo"}, ensure_ascii=False) + "\n")
    assert main([*args, "--out", str(tmp_path / "m")]) == 0
