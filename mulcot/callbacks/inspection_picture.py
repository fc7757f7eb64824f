"""The confusion matrix as a picture. Pillow draws it: a plotting library would be a dependency for this alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_PAPER, _INK, _FAINT = (255, 255, 255), (33, 37, 41), (108, 117, 125)
_LOW, _HIGH = (239, 246, 252), (8, 69, 148)
_CELL: Final = (30, 96)
"""Sides of a cell in pixels, of many labels and of few."""
_MAX_SIDE: Final = 720
_WITH_TEXT: Final = 44
"""Cells smaller than this are told apart by colour alone."""
_MAX_LABEL: Final = 18
"""Characters of a label's name that are shown."""


def confusion_picture(confusion: Mapping[str, Mapping[str, int]], title: str) -> Image.Image:
    """The picture: a row for each gold label, a column for each prediction, darker for a greater share of its row.

    Args:
        confusion: gold label → predicted label → posts.
        title: above it.
    """
    labels = list(confusion)
    cell = max(4, min(_CELL[1], _MAX_SIDE // len(labels)))
    font, small = ImageFont.load_default(max(11, min(16, cell // 3))), ImageFont.load_default(14)
    names = (
        [_shown(label, number, font) for number, label in enumerate(labels, 1)] if cell >= 14 else [""] * len(labels)
    )
    widest = max(int(font.getlength(name)) for name in names)
    is_slanted = widest > cell - 8
    left, right = widest + 48, 108
    top = 64 + (min(widest, 170) + 12 if is_slanted else 36)
    side = cell * len(labels)
    heading = ImageFont.load_default(18)
    width = max(left + side + right, int(heading.getlength(title)) + 48)
    picture = Image.new("RGB", (width, top + side + 28), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((24, 16), title, _INK, heading)
    draw.text((left + side / 2, 58), "predicted", _FAINT, small, anchor="mm")
    _draw_vertical(picture, "gold", (16, top + side // 2), small, _FAINT)
    if cell >= 14:
        draw.text((left + side + 14, top - 12), "recall", _FAINT, small, anchor="ls")
    for row, gold in enumerate(labels):
        counts = list(confusion[gold].values())
        middle = top + cell * row + cell / 2
        draw.text((left - 10, middle), names[row], _INK, font, anchor="rm")
        if names[row]:
            recall = f"{counts[row] / sum(counts):.0%}" if sum(counts) else "none"
            draw.text((left + side + 14, middle), f"{recall} of {sum(counts)}", _FAINT, small, anchor="lm")
        _draw_row(draw, (left, top + cell * row), cell, counts)
        place = left + cell * row + cell // 2
        if is_slanted:
            _draw_vertical(picture, names[row], (place, top - 8 - int(font.getlength(names[row])) // 2), font, _INK)
        else:
            draw.text((place, top - 12), names[row], _INK, font, anchor="ms")
    return picture


def _draw_row(draw: ImageDraw.ImageDraw, corner: tuple[int, int], cell: int, counts: Sequence[int]) -> None:
    """The cells of a gold label."""
    total = sum(counts)
    number, percent = ImageFont.load_default(max(12, cell // 4)), ImageFont.load_default(max(10, cell // 7))
    gap = 1 if cell >= 14 else 0
    for column, count in enumerate(counts):
        share = count / total if total else 0.0
        x, y = corner[0] + cell * column, corner[1]
        fill = tuple(round(low + (high - low) * share**0.8) for low, high in zip(_LOW, _HIGH, strict=True))
        draw.rectangle((x + gap, y + gap, x + cell - 1 - gap, y + cell - 1 - gap), fill)
        if cell >= _WITH_TEXT:
            ink = _PAPER if share > 0.45 else _INK
            has_room = cell >= 72
            draw.text((x + cell / 2, y + cell * (0.42 if has_room else 0.5)), str(count), ink, number, anchor="mm")
            if has_room and total:
                draw.text((x + cell / 2, y + cell * 0.72), f"{share:.0%}", ink, percent, anchor="mm")


def _draw_vertical(
    picture: Image.Image, text: str, middle: tuple[int, int], font: Font, colour: tuple[int, ...]
) -> None:
    """Text that reads upwards."""
    if not text:
        return
    _, _, right, bottom = (int(edge) for edge in font.getbbox(text))
    strip = Image.new("L", (right + 2, bottom + 4), 0)
    ImageDraw.Draw(strip).text((0, 0), text, 255, font)
    strip = strip.rotate(90, expand=True)
    corner = (middle[0] - strip.width // 2, middle[1] - strip.height // 2)
    picture.paste(colour, (*corner, corner[0] + strip.width, corner[1] + strip.height), strip)


def _shown(name: str, number: int, font: Font) -> str:
    """The label, cut when it is long; its number where Pillow's own font has no signs for it."""
    absent = bytes(font.getmask("\uffff"))
    if any(bytes(font.getmask(character)) == absent for character in name):
        return f"label {number}"
    return name if len(name) <= _MAX_LABEL else name[: _MAX_LABEL - 1] + "…"
