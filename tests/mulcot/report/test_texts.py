"""Texts on the page: what differs between two, and nothing hidden in one."""

import pytest
from markupsafe import Markup

from mulcot.report.differences import Piece, differences
from mulcot.shown_text import finalize, first_line, shortened, visible


def test_words_that_the_other_text_lacks_are_told():
    teacher, student = "The grey sky looks neutral to me.", "The dark grey sky looks negative."
    assert differences(student, teacher) == [
        Piece("The", alone=False),
        Piece("dark", alone=True),
        Piece("grey sky looks", alone=False),
        Piece("negative.", alone=True),
    ]
    assert differences(teacher, student) == [
        Piece("The", alone=False),
        Piece("grey sky looks", alone=False),
        Piece("neutral to me.", alone=True),
    ]


def test_equal_and_wholly_different_texts():
    assert differences("a  b", "a b") == [Piece("a b", alone=False)]
    assert differences("a b", "") == [Piece("a b", alone=True)]
    assert differences("", "a b") == []


def test_frequent_words_of_a_long_text_are_compared_too():
    # difflib's own heuristic leaves out words that make up more than a hundredth of 200 words or more.
    long = " ".join(["again"] * 300)
    assert differences(long, long) == [Piece(long, alone=False)]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain, ünïcode 中文\n\ttabs", "plain, ünïcode 中文\n\ttabs"),
        ("a\x00b\x1bc\x7fd\x85", "a[U+0000]b[U+001B]c[U+007F]d[U+0085]"),
        ("user\u202egnp.exe\u2066x\u2069", "user[U+202E]gnp.exe[U+2066]x[U+2069]"),
        ("\u200fעברית", "[U+200F]עברית"),
        ("half \ud83d of a pair", "half [U+D83D] of a pair"),
        ("zero\u200bwidth\ufeff", "zero[U+200B]width[U+FEFF]"),
        (
            "a family: \U0001f468\u200d\U0001f469\u200d\U0001f467",
            "a family: \U0001f468\u200d\U0001f469\u200d\U0001f467",
        ),
        ("joined to nothing: \u200d ", "joined to nothing: [U+200D] "),
        ("tag\U000e0041", "tag[U+E0041]"),
    ],
)
def test_hidden_characters_are_named(text, seen):
    assert visible(text) == seen
    assert finalize(text) == seen


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("\n  wrong shape \n  see the manual"), "wrong shape "),
        (ValueError(" \n"), "ValueError"),
        (KeyError(), "KeyError"),
    ],
)
def test_an_error_is_told_of_by_its_first_line_or_its_class(error, said):
    assert first_line(error) == said


def test_markup_of_ours_and_numbers_stay():
    markup = Markup("<b>\u200b</b>")
    assert finalize(markup) is markup
    assert finalize(0.5) == 0.5


def test_a_long_text_says_how_much_is_left_out():
    assert shortened("abc", 3) == "abc"
    assert shortened("a" * 1500, 10) == "aaaaaaaaaa … (1,490 more characters)"
