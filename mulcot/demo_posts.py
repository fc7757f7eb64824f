"""The embedded data set: posts made by code, small enough to learn from on a laptop, without a download.

Each post has a drawn picture, a short text, an aspect and a gold label. The picture decides unless it is grey; then
the tone of the clause about the aspect decides. Neither the picture nor the text tells the label alone: some texts
say the contrary of their picture, and some name two aspects in different tones under one picture.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

from PIL import Image
from rich.console import Console
from rich.progress import track

from mulcot.demo_scenes import GROUNDS, MOODS, MOTIFS, Mood, Scene, draw_scene
from mulcot.types import SPLITS, InputError, Split

Tone = Literal["positive", "neutral", "negative"]
Kind = Literal["picture", "conflict", "agree", "tone", "two-aspects"]
Key = TypeVar("Key")

TONES: Final[tuple[Tone, ...]] = get_args(Tone)
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
MARKER: Final = "demo_posts.json"
"""The file in a written folder that says what made it, and by which bytes to know that it is unchanged."""

_VERSION: Final = 1
_FORMAT: Final = 2
"""Of the written files; it changes without the posts themselves."""
MOST: Final = 1_000_000  # rows of a split; all are held in memory
_SLOW: Final = 400
"""From this many pictures on (about half a second) a progress bar is shown."""

_MOOD_TONE: Final[dict[Mood, Tone]] = {"sunny": "positive", "grey": "neutral", "stormy": "negative"}
_SINGLES: Final[dict[tuple[Kind, Mood, Tone], float]] = {
    ("picture", "sunny", "neutral"): 0.085,
    ("picture", "grey", "neutral"): 0.220,
    ("picture", "stormy", "neutral"): 0.085,
    ("conflict", "sunny", "negative"): 0.095,
    ("conflict", "stormy", "positive"): 0.095,
    ("agree", "sunny", "positive"): 0.060,
    ("agree", "stormy", "negative"): 0.060,
    ("tone", "grey", "positive"): 0.070,
    ("tone", "grey", "negative"): 0.070,
}
_TWO_ASPECTS_SHARE: Final = 0.16
"""With these shares of rows a predictor that sees the mood alone is right for 75%, one that sees the tone for 64%."""
_TONE_PAIRS: Final = tuple((first, second) for first in TONES for second in TONES if first != second)


def _listed(*lines: str) -> list[str]:
    return " / ".join(lines).split(" / ")


_NAMES: Final[list[str]] = _listed(
    "Maple / Cedar / Silver / Lantern / River / Amber / Willow / Copper / Juniper / Marble / Orchid / Falcon",
    "Velvet / Coral / Pepper / Saffron / Indigo / Hazel / Comet / Granite / Clover / Sparrow / Walnut / Opal",
    "Ginger / Thistle",
)
_THINGS: Final[list[str]] = _listed(
    "Cafe / Festival / Market / Museum / Bakery / Hotel / Library / Gallery / Concert / Garden / Theater",
    "Airline / Phone / Camera / Bicycle / Tram / Stadium / Diner / Marathon / Fair / Laptop / Cinema / Radio",
    "Ferry / Parade / Bookshop",
)
_TONE_WORDS: Final[dict[Tone, list[str]]] = {
    "positive": _listed(
        "wonderful / lovely / brilliant / superb / charming / delightful / fantastic / excellent / great / amazing",
        "splendid / marvellous / gorgeous / terrific",
    ),
    "negative": _listed(
        "awful / dreadful / terrible / horrible / boring / disappointing / poor / nasty / grim / lousy",
        "miserable / shabby / rotten / annoying",
    ),
}
_PLAIN_FACTS: Final[list[str]] = _listed(
    "is on the list / is in the news / has a new owner / has a new name / has a short name / has its own number",
    "returns on monday / returns in june / is on page four / starts on friday / turns ten this year",
    "is listed for tuesday / comes from the north / belongs to the city / is run by students",
    "has two other sponsors",
)
_TONED_CLAUSES: Final = (
    "{aspect} is {word}",
    "{aspect} was really {word}",
    "{aspect} looks {word} and {second}",
    "{aspect} felt {word} again",
    "I call {aspect} {word}",
    "I find {aspect} {word} and {second}",
    "everyone says {aspect} is {word}",
    "all of {aspect} seemed {word}",
)
_PLAIN_CLAUSES: Final = ("{aspect} {word}", "{aspect} {word}", "they say {aspect} {word}", "note that {aspect} {word}")
_JOINTS: Final = ("{} but {}.", "{} while {}.", "while {}, {}.")
_OPENERS: Final[list[str]] = _listed(
    "this morning / after lunch / on the way home / once more / as we speak / for the record / just so you know",
    "well then / right now / first of all / between two meetings / like every spring / a small update",
    "since you asked",
)
_CLOSERS: Final[list[str]] = _listed(
    "as of today / in my view / and that is it / here in town / if you ask me / for this season / once again",
    "as you can see / this very evening / with my family / says my neighbour / at this hour / before the holidays",
    "around the corner",
)


@dataclass(frozen=True, slots=True)
class Clause:
    """A stretch of a text that says one thing of one aspect."""

    aspect: str
    """What it is about."""
    tone: Tone
    """Its sentiment, taken by itself."""
    evidence: tuple[str, ...]
    """One or two tone words, or the plain fact of a neutral clause; they stand in the text as they are here."""
    text: str
    """As it stands in the post."""


@dataclass(frozen=True, slots=True)
class DemoPost:
    """One row of the embedded data set and how it was made."""

    post_id: str
    """Unique over all splits."""
    text: str
    """6 to 16 words."""
    aspect: str
    """What the label is about; it stands in the text."""
    label: Tone
    """The gold label."""
    kind: Kind
    """How text and picture relate."""
    scene: Scene
    """What the picture shows."""
    clauses: tuple[Clause, ...]
    """One clause, or two under `two-aspects`, in the order of the text."""
    image: str
    """The picture's file name; the two rows of a `two-aspects` post share it."""

    @property
    def clause(self) -> Clause:
        """The clause about the aspect."""
        return next(clause for clause in self.clauses if clause.aspect == self.aspect)

    @property
    def is_conflict(self) -> bool:
        """Whether the clause about the aspect, by itself, says another sentiment than the picture does."""
        return self.clause.tone != _MOOD_TONE[self.scene.mood]

    @property
    def other(self) -> Clause | None:
        """The clause about the other aspect; None where there is none."""
        return next((clause for clause in self.clauses if clause.aspect != self.aspect), None)


def rule(mood: Mood, tone: Tone) -> Tone:
    """The gold label: the picture's mood unless it is grey, then the tone of the clause about the aspect."""
    return tone if mood == "grey" else _MOOD_TONE[mood]


def generate(split: Split, count: int, seed: int) -> list[DemoPost]:
    """Makes the posts of one split.

    The shares of kinds, moods and tones are kept as exactly as `count` allows.

    Args:
        split: Its posts differ from those of the other splits.
        count: How many rows.
        seed: Equal arguments give equal posts.

    Raises:
        ValueError: `count` is negative or the split is unknown.
    """
    if count < 0 or split not in SPLITS:
        raise ValueError(f"generate needs one of the splits {SPLITS} and a count of 0 or more, not {split!r}, {count}")
    rng = random.Random(f"mulcot demo posts {_VERSION} {seed} {split}")
    pairs = round(count * _TWO_ASPECTS_SHARE / 2)
    recipes: list[tuple[Kind, Mood, tuple[Tone, ...]]] = [
        (kind, mood, (tone,)) for kind, mood, tone in _apportion(rng, count - 2 * pairs, _SINGLES)
    ]
    recipes += [("two-aspects", "grey", tones) for tones in _apportion(rng, pairs, dict.fromkeys(_TONE_PAIRS, 1.0))]
    rng.shuffle(recipes)
    posts: list[DemoPost] = []
    for number, (kind, mood, tones) in enumerate(recipes):
        posts += _make_rows(rng, f"{split}-{number:05d}", kind, mood, tones)
    rng.shuffle(posts)
    return posts


def draw(demo_post: DemoPost) -> Image.Image:
    """Draws a post's picture: RGB, 56 x 56 pixels; rows that share a picture get equal ones."""
    return draw_scene(demo_post.scene)


def write_demo_posts(out: Path, train: int = 1000, val: int = 150, test: int = 300, seed: int = 0) -> None:
    """Writes the embedded data set as a folder in the common format.

    `images/` holds the pictures, `{train,val,test}.jsonl` the rows (id, text, aspect, label, image, conflict: yes or
    no), `facts.jsonl` how each row was made (for the oracle teacher alone). The folder appears whole or not at all. A
    folder that an earlier call wrote is left as it is when the arguments are equal, and replaced when they are not.

    Args:
        out: The folder to make; its parents are made too.
        train: Rows of the training split.
        val: Rows of the validation split.
        test: Rows of the test split.
        seed: Equal arguments write equal bytes.

    Raises:
        InputError: a size is not in 1 to `MOST`, or `out` holds what this function did not write or what was changed.
    """
    sizes: dict[Split, int] = {"train": train, "val": val, "test": test}
    for split, size in sizes.items():
        if not 1 <= size <= MOST:
            raise InputError(f"demo posts: {split} is {size}, it must be at least 1 and at most {MOST}")
    out = Path(os.path.realpath(out))  # a link stays a link: the folder that it names is the one that is renamed
    arguments = {"version": _VERSION, "format": _FORMAT, "train": train, "val": val, "test": test, "seed": seed}
    if _written_with(out) == arguments:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.parent / f".{out.name}.{secrets.token_hex(6)}.tmp"
    try:
        _write_files(building, {split: generate(split, size, seed) for split, size in sizes.items()})
        marker = {"arguments": arguments, "sha256": _digest(building)}
        (building / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
        _put_in_place(building, out, arguments)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def read_facts(path: Path) -> dict[str, DemoPost]:
    """Reads a `facts.jsonl`.

    Returns:
        The posts by id.

    Raises:
        InputError: the file cannot be read, or a row of it is not what `write_demo_posts` wrote.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the facts of the demo posts cannot be read ({error})") from error
    posts: dict[str, DemoPost] = {}
    for row, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            clauses = tuple(Clause(**{**clause, "evidence": tuple(clause["evidence"])}) for clause in values["clauses"])
            post = DemoPost(**{**values, "scene": Scene(**values["scene"]), "clauses": clauses})
            sound = post.scene.mood in MOODS and post.label == rule(post.scene.mood, post.clause.tone)
        except (ValueError, TypeError, KeyError, StopIteration) as error:
            raise InputError(
                f"{path}:{row}: not the facts of a demo post ({type(error).__name__}: {error}); make the file anew"
            ) from error
        if not sound or post.post_id in posts:
            raise InputError(f"{path}:{row}: the facts contradict the label, or the id repeats; make the file anew")
        posts[post.post_id] = post
    return posts


def _apportion(rng: random.Random, count: int, shares: Mapping[Key, float]) -> list[Key]:
    """`count` keys in the given shares by largest remainder; `rng` breaks ties, else small sets would all be alike."""
    total = sum(shares.values())
    exact = {key: count * share / total for key, share in shares.items()}
    numbers = {key: int(value) for key, value in exact.items()}
    by_remainder = sorted(exact, key=lambda key: (round(numbers[key] - exact[key], 9), rng.random()))
    for key in by_remainder[: count - sum(numbers.values())]:
        numbers[key] += 1
    return [key for key, number in numbers.items() for _ in range(number)]


def _make_rows(rng: random.Random, name: str, kind: Kind, mood: Mood, tones: Sequence[Tone]) -> list[DemoPost]:
    """The rows that share one picture and one text: one, or two with an aspect each."""
    scene = Scene(mood, rng.choice(GROUNDS), rng.choice(MOTIFS), rng.getrandbits(53))
    # Two aspects of one text share no word, else their names alone would not tell them apart.
    aspects = zip(rng.sample(_NAMES, len(tones)), rng.sample(_THINGS, len(tones)), strict=True)
    clauses = tuple(
        _make_clause(rng, f"{first} {second}", tone) for (first, second), tone in zip(aspects, tones, strict=True)
    )
    text = _join(rng, clauses) if len(clauses) > 1 else _surround(rng, clauses[0])
    names = [name] if len(clauses) == 1 else [f"{name}-{number}" for number in range(1, len(clauses) + 1)]
    return [
        DemoPost(post_id, text, clause.aspect, rule(mood, clause.tone), kind, scene, clauses, f"{name}.png")
        for post_id, clause in zip(names, clauses, strict=True)
    ]


def _make_clause(rng: random.Random, aspect: str, tone: Tone) -> Clause:
    if tone == "neutral":
        evidence = [rng.choice(_PLAIN_FACTS)]
        template = rng.choice(_PLAIN_CLAUSES)
    else:
        evidence = rng.sample(_TONE_WORDS[tone], 2)
        template = rng.choice(_TONED_CLAUSES)
        if "{second}" not in template:
            evidence = evidence[:1]
    text = template.format(aspect=aspect, word=evidence[0], second=evidence[-1])
    return Clause(aspect, tone, tuple(evidence), text)


def _surround(rng: random.Random, clause: Clause) -> str:
    """The clause with something toneless before it, after it, or both."""
    opener, closer = rng.choice(((True, False), (False, True), (True, True)))
    before = f"{rng.choice(_OPENERS)}, " if opener else ""
    after = f" {rng.choice(_CLOSERS)}" if closer else ""
    return f"{before}{clause.text}{after}."


def _join(rng: random.Random, clauses: Sequence[Clause]) -> str:
    return rng.choice(_JOINTS).format(*(clause.text for clause in clauses))


def _write_files(folder: Path, splits: Mapping[Split, Sequence[DemoPost]]) -> None:
    images = folder / "images"
    images.mkdir(parents=True)
    posts = [post for split in splits.values() for post in split]
    scenes = {post.image: post.scene for post in posts}
    for name, scene in track(
        scenes.items(),
        description="drawing demo posts",
        console=Console(stderr=True),
        transient=True,
        disable=len(scenes) < _SLOW,
    ):
        buffer = io.BytesIO()
        draw_scene(scene).save(buffer, format="PNG")
        (images / name).write_bytes(buffer.getvalue())
    for split, rows in splits.items():
        _write_lines(folder / f"{split}.jsonl", (_row(post) for post in rows))
    _write_lines(folder / "facts.jsonl", (asdict(post) for post in posts))


def _row(post: DemoPost) -> dict[str, str]:
    row = {"id": post.post_id, "text": post.text, "aspect": post.aspect, "label": post.label, "image": post.image}
    return row | {"conflict": "yes" if post.is_conflict else "no"}


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="\n")


def _digest(folder: Path) -> str:
    """A hash of every file's name and bytes below a folder, the marker left out."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MARKER):
        total.update(
            f"{path.relative_to(folder).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return total.hexdigest()


def _written_with(out: Path) -> dict[str, Any] | None:
    """The arguments that `out` was written with; None where there is nothing yet.

    Raises:
        InputError: `out` holds something else, or was changed since.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
        arguments, digest = dict(marker["arguments"]), marker["sha256"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{out}: is not a folder of demo posts and not empty; name another folder") from error
    if digest != _digest(out):
        raise InputError(
            f"{out}: its demo posts were changed since they were written; remove it or name another folder"
        )
    return arguments


def _put_in_place(building: Path, out: Path, arguments: Mapping[str, Any]) -> None:
    """Renames a complete folder to `out`, in the place of nothing, an empty folder or an unchanged older one."""
    replaced: Path | None = None
    if _written_with(out) is not None:
        replaced = out.parent / f".{out.name}.{secrets.token_hex(6)}.old"
        os.rename(out, replaced)
    try:
        os.rename(building, out)
    except OSError:
        # Another process may have come first; what it wrote with the same arguments is the same.
        if _written_with(out) != arguments:
            if replaced is not None and not out.exists():
                os.rename(replaced, out)
            raise
    if replaced is not None:
        shutil.rmtree(replaced)
