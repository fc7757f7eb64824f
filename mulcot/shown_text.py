"""Text of others as it may be shown: nothing in it is invisible, turns a page around or acts on a terminal."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, Final

LONGEST: Final = 4000
"""Characters of one text that are shown."""
_HIDDEN: Final = re.compile(
    # Controls, marks that reorder text, blanks without width, halves of a character, and code points that are none.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)


def visible(text: str) -> str:
    """The text with every invisible or reordering character as its code point, such as `[U+202E]`.

    Zero-width joiners stay where they join: emoji and several scripts need them.
    """
    return _HIDDEN.sub(_named, text)


def shortened(text: str, longest: int = LONGEST) -> str:
    """The text, cut where it is longer than a reader will read, with how much was left out."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]} … ({len(text) - longest:,} more characters)"


def first_line(error: BaseException) -> str:
    """What an error says, without its tail of advice; its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def printable_json(value: Any, indent: int | None = 2) -> str:
    """A value as JSON that may be printed: what is invisible or reorders text is an escape, all else as it is.

    It parses to the same value as any other JSON of it.
    """
    written = json.dumps(value, indent=indent, ensure_ascii=False)
    return _HIDDEN.sub(lambda match: json.dumps(match.group())[1:-1], written)


def finalize(value: Any) -> Any:
    """What jinja2 does with every value before it escapes it: text becomes `visible`, markup of ours stays."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _named(match: re.Match[str]) -> str:
    character = match.group()
    text, start = match.string, match.start()
    if character in "\u200c\u200d" and 0 < start < len(text) - 1:
        around = (unicodedata.category(text[start - 1]), unicodedata.category(text[start + 1]))
        if all(category[0] in "LMS" for category in around):
            return character
    return f"[U+{ord(character):04X}]"
