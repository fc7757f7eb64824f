"""The pictures of the embedded data set: small landscapes whose weather carries the sentiment.

A picture is drawn from a `Scene` alone, with shapes and colours only (no font, no file), so it is the same wherever
it is drawn. Sky, light and one motif (sun, flat clouds, rain) tell the mood over most of the picture's area; ground,
building, positions and hues vary freely and say nothing of it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Literal, get_args

from PIL import Image, ImageDraw

Mood = Literal["sunny", "grey", "stormy"]
Ground = Literal["meadow", "beach", "lake", "street", "field"]
Motif = Literal["a house", "trees", "hills", "a tower", "a fence"]
Colour = tuple[int, int, int]

MOODS: Final[tuple[Mood, ...]] = get_args(Mood)
GROUNDS: Final[tuple[Ground, ...]] = get_args(Ground)
MOTIFS: Final[tuple[Motif, ...]] = get_args(Motif)
SIDE: Final = 56
"""Width and height of a picture in pixels: two by two merged patches of 28 pixels for a Qwen2.5-VL vision tower."""

_SKY: Final[dict[Mood, tuple[Colour, Colour]]] = {
    "sunny": ((70, 150, 240), (165, 215, 250)),
    "grey": ((150, 152, 155), (182, 183, 184)),
    "stormy": ((28, 30, 48), (62, 64, 84)),
}
_GROUND: Final[dict[Ground, Colour]] = {
    "meadow": (90, 175, 75),
    "beach": (225, 200, 135),
    "lake": (60, 135, 190),
    "street": (140, 128, 122),
    "field": (205, 175, 70),
}
_LIGHT: Final[dict[Mood, tuple[float, float]]] = {"sunny": (1.0, 1.0), "grey": (0.8, 0.45), "stormy": (0.38, 0.6)}
"""Brightness and saturation that the weather leaves to the things on the ground."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows; equal scenes are equal pictures."""

    mood: Mood
    """The weather: sun on a blue sky, an overcast grey, rain in the dark."""
    ground: Ground
    """What covers the lower part."""
    motif: Motif
    """What stands on it."""
    drawing_seed: int
    """Decides positions, sizes, hues, cloud shapes and rain density."""


def draw_scene(scene: Scene) -> Image.Image:
    """Draws a scene.

    Returns:
        An RGB picture of `SIDE` x `SIDE` pixels; a pure function of the scene.
    """
    rng = random.Random(scene.drawing_seed)
    picture = Image.new("RGB", (SIDE, SIDE))
    pen = ImageDraw.Draw(picture)
    horizon = rng.randint(32, 42)
    _draw_sky(pen, rng, scene.mood, horizon)
    _draw_motif(pen, rng, scene, horizon)
    _draw_ground(pen, rng, scene, horizon)
    if scene.mood == "stormy":
        _draw_rain(pen, rng)
    return picture


def _jitter(rng: random.Random, colour: Colour, spread: int = 14) -> Colour:
    red, green, blue = (min(255, max(0, channel + rng.randint(-spread, spread))) for channel in colour)
    return red, green, blue


def _lit(rng: random.Random, colour: Colour, mood: Mood) -> Colour:
    """The colour of a thing on the ground in this weather, with its hue jittered."""
    brightness, saturation = _LIGHT[mood]
    grey = sum(colour) / 3
    red, green, blue = (round(brightness * (grey + saturation * (channel - grey))) for channel in colour)
    return _jitter(rng, (red, green, blue), spread=12)


def _draw_sky(pen: ImageDraw.ImageDraw, rng: random.Random, mood: Mood, horizon: int) -> None:
    # One shift for all channels of a grey sky: independent ones would tint it blue.
    shift = rng.randint(-12, 12)
    top, bottom = (
        _jitter(rng, (red + shift, green + shift, blue + shift), spread=3 if mood == "grey" else 10)
        for red, green, blue in _SKY[mood]
    )
    for row in range(horizon + 1):
        part = row / horizon
        red, green, blue = (round(high + part * (low - high)) for high, low in zip(top, bottom, strict=True))
        pen.line((0, row, SIDE, row), fill=(red, green, blue))
    if mood == "sunny":
        _draw_sun(pen, rng)
        for _ in range(rng.randint(0, 2)):
            _draw_cloud(pen, rng, _jitter(rng, (243, 246, 248), spread=6), size=rng.randint(3, 5), lowest=24)
        return
    base = 192 if mood == "grey" else 78
    for _ in range(rng.randint(4, 7)):
        level = base + rng.randint(-24, 20)
        tint = 3 if mood == "grey" else 14
        _draw_cloud(pen, rng, (level, level, level + tint), size=rng.randint(5, 9), lowest=18)


def _draw_sun(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    x, y, radius = rng.randint(10, SIDE - 11), rng.randint(9, 17), rng.randint(6, 9)
    colour = _jitter(rng, (255, 218, 45), spread=10)
    if rng.random() < 0.6:
        reach = radius + rng.randint(3, 5)
        for along, across in ((1.0, 0.0), (0.0, 1.0), (0.7, 0.7), (0.7, -0.7)):
            ends = (x - along * reach, y - across * reach, x + along * reach, y + across * reach)
            pen.line(ends, fill=colour, width=1)
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _draw_cloud(pen: ImageDraw.ImageDraw, rng: random.Random, colour: Colour, size: int, lowest: int) -> None:
    x, y = rng.randint(0, SIDE), rng.randint(2, lowest)
    for step in range(rng.randint(2, 4)):
        left, height = x + (step - 1) * size, rng.randint(size // 2, size)
        pen.ellipse((left - size, y - height, left + size, y + height // 2 + 1), fill=colour)


def _draw_ground(pen: ImageDraw.ImageDraw, rng: random.Random, scene: Scene, horizon: int) -> None:
    pen.rectangle((0, horizon, SIDE, SIDE), fill=_lit(rng, _GROUND[scene.ground], scene.mood))
    detail = _lit(rng, _GROUND[scene.ground], scene.mood)
    for _ in range(rng.randint(3, 7)):
        x, y, length = rng.randint(0, SIDE - 8), rng.randint(horizon + 2, SIDE - 1), rng.randint(3, 12)
        pen.line((x, y, x + length, y), fill=detail)


def _draw_motif(pen: ImageDraw.ImageDraw, rng: random.Random, scene: Scene, horizon: int) -> None:
    """Draws what stands on the ground; the ground is drawn over its foot."""
    x = rng.randint(8, SIDE - 20)
    match scene.motif:
        case "a house":
            _draw_house(pen, rng, scene.mood, x, horizon)
        case "trees":
            for place in (x, x + rng.randint(9, 13)):
                _draw_tree(pen, rng, scene.mood, place, horizon)
        case "hills":
            for _ in range(rng.randint(2, 3)):
                middle, width, height = rng.randint(0, SIDE), rng.randint(14, 24), rng.randint(7, 12)
                box = (middle - width, horizon - height, middle + width, horizon + height)
                pen.ellipse(box, fill=_lit(rng, (80, 130, 85), scene.mood))
        case "a tower":
            width, height = rng.randint(4, 7), rng.randint(16, 24)
            pen.rectangle((x, horizon - height, x + width, horizon), fill=_lit(rng, (175, 160, 150), scene.mood))
            pen.rectangle((x - 1, horizon - height - 2, x + width + 1, horizon - height), fill=(60, 55, 60))
        case "a fence":
            colour = _lit(rng, (165, 115, 70), scene.mood)
            pen.line((0, horizon - 5, SIDE, horizon - 5), fill=colour, width=2)
            for post in range(rng.randint(0, 4), SIDE, rng.randint(5, 8)):
                pen.line((post, horizon - 8, post, horizon), fill=colour, width=2)


def _draw_house(pen: ImageDraw.ImageDraw, rng: random.Random, mood: Mood, x: int, horizon: int) -> None:
    width, height = rng.randint(11, 17), rng.randint(7, 11)
    wall = rng.choice(((225, 215, 195), (200, 150, 120), (190, 195, 205)))
    pen.rectangle((x, horizon - height, x + width, horizon), fill=_lit(rng, wall, mood))
    roof = ((x - 2, horizon - height), (x + width // 2, horizon - height - 7), (x + width + 2, horizon - height))
    pen.polygon(roof, fill=_lit(rng, (170, 70, 55), mood))
    pen.rectangle((x + 3, horizon - 5, x + 5, horizon), fill=_lit(rng, (90, 65, 50), mood))


def _draw_tree(pen: ImageDraw.ImageDraw, rng: random.Random, mood: Mood, x: int, horizon: int) -> None:
    trunk, crown = rng.randint(5, 9), rng.randint(4, 6)
    pen.line((x, horizon - trunk, x, horizon), fill=_lit(rng, (105, 75, 50), mood), width=2)
    box = (x - crown, horizon - trunk - 2 * crown + 2, x + crown, horizon - trunk + 2)
    pen.ellipse(box, fill=_lit(rng, (55, 130, 60), mood))


def _draw_rain(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    slant, colour = rng.randint(-3, 3), _jitter(rng, (135, 150, 185))
    for _ in range(rng.randint(28, 60)):
        x, y, length = rng.randint(-2, SIDE + 2), rng.randint(10, SIDE), rng.randint(4, 7)
        pen.line((x, y, x + slant, y + length), fill=colour)
    if rng.random() < 0.3:
        x = rng.randint(10, SIDE - 10)
        pen.line(((x, 8), (x - 3, 17), (x + 2, 19), (x - 2, 29)), fill=(235, 230, 160), width=1)
