"""What stands in a post or a reply can be no Markdown and no HTML where TensorBoard shows it."""

import html
import re
import warnings
from pathlib import Path

import pytest

from mulcot.callbacks.inspection_text import escape, rationale_table
from mulcot.types import Answer, Post, Rationale, RationaleRecord

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TensorBoard's own copy of html5lib
    from tensorboard.plugin_util import markdown_to_safe_html

HOSTILE = [
    "<script>alert(1)</script> <b>bold</b>",
    "a | b || c",
    "**bold** _it_ __it__ ~~gone~~ `code` ``` fence",
    "[link](http://example.org) ![](x.png) <http://example.org>",
    "# head\n- item\n1. item\n> quote\n\n---\n    code",
    "&lt;b&gt; &amp; &#42;",
    "\\* \\| \\",
    "end of row |\n| new | row |",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_comes_through_markdown_as_it_was(text: str) -> None:
    rendered = markdown_to_safe_html(f"| a | b |\n|---|---|\n| x | {escape(text)} |")
    cells = re.findall(r"<td>(.*?)</td>", rendered, re.DOTALL)
    assert [html.unescape(cell) for cell in cells] == ["x", " ".join(text.split())]
    assert not re.search("<", cells[1])
    paragraph = markdown_to_safe_html(f"Post: {escape(text)}")
    assert html.unescape(paragraph) == f"<p>Post: {' '.join(text.split())}</p>"


def test_what_cannot_be_written_is_replaced_and_what_is_long_is_cut() -> None:
    assert escape("a\ud800b\x00c\u202ed") == "a&#63;b\ufffdc\ufffdd"
    assert len(escape("x" * 10_000)) < 1600
    assert "cut" in escape("x" * 10_000)


def made(text: str) -> Rationale:
    return Rationale(text, text, text, text, "positive")


def test_a_table_has_five_rows_whatever_the_texts_are() -> None:
    for text in HOSTILE:
        post = Post(text, text, Path(), aspect=text, label=text)
        record = RationaleRecord(text, made(text), "teacher-explained", "m", "h")
        rendered = markdown_to_safe_html(
            rationale_table(post, Answer(text, text, {text: 0.5}, made(text), "", ""), record)
        )
        assert rendered.count("<tr>") == 6
        assert rendered.count("<td>") == 15
        assert set(re.findall(r"</?(\w+)", rendered)) == {
            *("p", "strong", "table", "thead", "tbody", "tr", "th", "td"),
        }


def test_right_and_wrong_are_marked_and_a_refused_reply_is_shown_as_it_was_written() -> None:
    post = Post("7", "nice", Path(), label="positive")
    right = rationale_table(post, Answer("7", "neutral", {"neutral": 0.75}, made("x"), "", ""), None)
    assert "Classification: **neutral** (75%) ✗" in right
    assert "| positive ✓ |" in right
    assert "There is no reference" in right
    refused = rationale_table(post, Answer("7", "positive", {}, None, "bla <b>", "missing field Prediction"), None)
    assert "| no rationale: missing field Prediction | bla &#60;b&#62; |  |" in refused
