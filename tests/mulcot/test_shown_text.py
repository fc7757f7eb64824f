"""What is shown of other people's texts."""

from __future__ import annotations

import json

from mulcot.shown_text import printable_json

ACTING = "a\x1b[31m\x07\x7f\x9b1m\u202e\u2066\u200b\ufeff\u2028\U000e0041\ud800\r\n\tz"


def test_printed_json_acts_on_no_terminal_and_says_the_same() -> None:
    value = {ACTING: [ACTING, 1, None, "Grüße 日本 🙂"]}
    for indent in (2, None):
        shown = printable_json(value, indent)
        assert json.loads(shown) == value
        assert all(letter.isprintable() or letter == "\n" for letter in shown)
        assert "Grüße 日本 🙂" in shown
    assert r"\u009b1m\u202e" in printable_json(ACTING)
