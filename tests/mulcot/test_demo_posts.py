"""Laws of the embedded data set, stated on its facts and on the files that it writes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageStat

import mulcot.demo_posts as demo_posts
from mulcot.demo_posts import KINDS, MARKER, DemoPost, draw, generate, read_facts, write_demo_posts
from mulcot.demo_scenes import GROUNDS, MOODS, MOTIFS, SIDE, Ground, Motif, Scene, draw_scene
from mulcot.types import SPLITS, InputError

SIZES = {"train": 1500, "val": 300, "test": 300}


@pytest.fixture(scope="module")
def posts() -> dict[str, list[DemoPost]]:
    return {split: generate(split, SIZES[split], seed=0) for split in SPLITS}


@pytest.fixture(scope="module")
def everything(posts: dict[str, list[DemoPost]]) -> list[DemoPost]:
    return [post for split in SPLITS for post in posts[split]]


@pytest.fixture(scope="module")
def picture_bytes(everything: list[DemoPost]) -> dict[str, bytes]:
    return {post.image: draw(post).tobytes() for post in everything}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "data"
    write_demo_posts(out, train=40, val=12, test=9, seed=3)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("split", SPLITS)
def test_kinds_and_labels_have_the_intended_shares(posts: dict[str, list[DemoPost]], split: str) -> None:
    count = len(posts[split])
    assert count == SIZES[split]
    kinds = Counter(post.kind for post in posts[split])
    wanted = {"picture": 0.40, "conflict": 0.20, "agree": 0.12, "tone": 0.13, "two-aspects": 0.15}
    assert {kind: kinds[kind] / count for kind in KINDS} == pytest.approx(wanted, abs=0.015)
    labels = Counter(post.label for post in posts[split])
    assert all(0.25 <= labels[label] / count <= 0.42 for label in ("positive", "neutral", "negative"))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "seen",
    [
        lambda post: post.clause.tone,
        lambda post: (post.clause.tone, len(post.clauses)),
        lambda post: post.scene.mood,
        lambda post: (post.scene.mood, post.scene.ground, post.scene.motif),
    ],
    ids=["tone", "tone and clauses", "mood", "whole scene"],
)
def test_neither_text_nor_picture_alone_tells_the_label(
    posts: dict[str, list[DemoPost]], split: str, seen: Callable[[DemoPost], object]
) -> None:
    # The best predictor from what is seen answers the commonest label of each group.
    groups: dict[object, Counter[str]] = {}
    for post in posts[split]:
        groups.setdefault(seen(post), Counter())[post.label] += 1
    right = sum(max(group.values()) for group in groups.values())
    assert right / len(posts[split]) < 0.8


def test_label_follows_from_picture_and_clause(everything: list[DemoPost]) -> None:
    # A table by hand, independent of the code's rule.
    by_picture = {"sunny": "positive", "stormy": "negative"}
    for post in everything:
        clause = next(clause for clause in post.clauses if clause.aspect == post.aspect)
        assert post.label == by_picture.get(post.scene.mood, clause.tone)


def test_kinds_mean_what_they_say(everything: list[DemoPost]) -> None:
    for post in everything:
        mood, tone = post.scene.mood, post.clause.tone
        match post.kind:
            case "picture":
                assert tone == "neutral"
            case "conflict":
                assert (mood, tone) in {("sunny", "negative"), ("stormy", "positive")}
            case "agree":
                assert (mood, tone) in {("sunny", "positive"), ("stormy", "negative")}
            case "tone":
                assert mood == "grey"
                assert tone != "neutral"
            case "two-aspects":
                assert mood == "grey"
                assert post.other is not None
        assert (post.other is not None) == (post.kind == "two-aspects")


def test_two_aspects_share_text_and_picture_but_not_the_label(posts: dict[str, list[DemoPost]]) -> None:
    pairs: dict[str, list[DemoPost]] = {}
    for post in posts["train"]:
        if post.kind == "two-aspects":
            pairs.setdefault(post.image, []).append(post)
    orders: Counter[tuple[str, ...]] = Counter()
    for first, second in pairs.values():
        assert first.text == second.text
        assert first.scene == second.scene
        assert first.label != second.label
        assert not set(first.aspect.split()) & set(second.aspect.split())
        orders[tuple(clause.tone for clause in first.clauses)] += 1
        places = [first.text.index(clause.text) for clause in first.clauses]
        assert places == sorted(places)
        assert " but " in first.text or "while " in first.text
    # Every ordered pair of different tones, as often as any other.
    assert len(pairs) == 120
    assert orders == {(a, b): 20 for a in demo_posts.TONES for b in demo_posts.TONES if a != b}


def test_words_of_the_text(everything: list[DemoPost]) -> None:
    for post in everything:
        assert 6 <= len(post.text.split()) <= 16
        assert post.aspect in post.text
        for clause in post.clauses:
            assert clause.text in post.text
            assert all(words in clause.text for words in clause.evidence)
    assert len({word for post in everything for word in re.findall(r"\w+", post.text)}) <= 250
    assert len({post.aspect for post in everything}) >= 300
    for tone in ("positive", "negative"):
        tone_words = {word for post in everything for c in post.clauses if c.tone == tone for word in c.evidence}
        assert len(tone_words) >= 8


def test_tone_words_do_not_tell_the_kind(everything: list[DemoPost]) -> None:
    """Irony is not marked in the text: praise over a storm uses the words that praise in the sun uses."""
    used: dict[str, set[str]] = {"conflict": set(), "agree": set()}
    for post in everything:
        if post.kind in used:
            used[post.kind].update(post.clause.evidence)
    assert used["conflict"] == used["agree"]


def test_no_two_posts_are_equal_and_splits_share_no_picture(
    posts: dict[str, list[DemoPost]], everything: list[DemoPost], picture_bytes: dict[str, bytes]
) -> None:
    assert len({post.post_id for post in everything}) == len(everything)
    assert len({(post.text, post.aspect, picture_bytes[post.image]) for post in everything}) == len(everything)
    assert len(set(picture_bytes.values())) == len(picture_bytes)
    names = [{post.image for post in posts[split]} for split in SPLITS]
    assert len(set.union(*names)) == sum(map(len, names))


def test_generate_is_a_pure_function_of_its_arguments(posts: dict[str, list[DemoPost]]) -> None:
    assert generate("val", 300, seed=0) == posts["val"]
    assert generate("val", 300, seed=1) != posts["val"]
    assert {post.text for post in posts["val"]} != {post.text for post in posts["test"]}


@pytest.mark.parametrize("count", range(0, 30))
def test_small_counts_are_exact(count: int) -> None:
    assert len(generate("train", count, seed=0)) == count


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        generate("train", -1, seed=0)


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("motif", MOTIFS)
def test_the_sky_is_blue_or_grey_or_dark(ground: Ground, motif: Motif) -> None:
    for drawing_seed in range(8):
        for mood in MOODS:
            picture = draw_scene(Scene(mood, ground, motif, drawing_seed))
            assert (picture.mode, picture.size) == ("RGB", (SIDE, SIDE))
            red, green, blue = ImageStat.Stat(picture.crop((0, 0, SIDE, SIDE // 2))).mean
            if mood == "sunny":
                assert blue > red + 25
            else:
                assert abs(blue - red) < 30
            assert (green < 110) == (mood == "stormy")


def test_a_linear_model_sees_the_mood_in_the_pooled_pixels(posts: dict[str, list[DemoPost]]) -> None:
    def features(rows: list[DemoPost]) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.stack([torch.frombuffer(bytearray(draw(post).tobytes()), dtype=torch.uint8) for post in rows])
        grid = pixels.view(-1, 7, SIDE // 7, 7, SIDE // 7, 3).double().div(255).mean(dim=(2, 4)).flatten(1)
        with_bias = torch.cat([grid, torch.ones(len(rows), 1, dtype=torch.double)], dim=1)
        return with_bias, torch.tensor([MOODS.index(post.scene.mood) for post in rows])

    inputs, moods = features(posts["train"][:500])
    weights = torch.linalg.lstsq(inputs, torch.nn.functional.one_hot(moods).double()).solution
    inputs, moods = features(posts["test"])
    assert ((inputs @ weights).argmax(1) == moods).double().mean() > 0.97


def test_files_hold_the_posts(written: Path) -> None:
    names = {"images", "train.jsonl", "val.jsonl", "test.jsonl", "facts.jsonl", MARKER}
    assert {path.name for path in written.iterdir()} == names
    facts = read_facts(written / "facts.jsonl")
    sizes = {"train": 40, "val": 12, "test": 9}
    seen: list[str] = []
    pictures: set[str] = set()
    for split in SPLITS:
        expected = generate(split, sizes[split], seed=3)
        rows = [json.loads(line) for line in (written / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [row["id"] for row in rows] == [post.post_id for post in expected]
        for row, post in zip(rows, expected, strict=True):
            assert list(row) == ["id", "text", "aspect", "label", "image", "conflict"]
            assert facts[row["id"]] == post
            assert (row["text"], row["aspect"], row["label"]) == (post.text, post.aspect, post.label)
            with Image.open(written / "images" / row["image"]) as picture:
                assert picture.tobytes() == draw(post).tobytes()
        seen += [row["id"] for row in rows]
        pictures |= {row["image"] for row in rows}
    assert list(facts) == seen
    assert {path.name for path in (written / "images").iterdir()} == pictures


def test_equal_arguments_write_equal_bytes(written: Path, tmp_path: Path) -> None:
    write_demo_posts(tmp_path / "again", train=40, val=12, test=9, seed=3)
    assert contents(tmp_path / "again") == contents(written)
    write_demo_posts(tmp_path / "other", train=40, val=12, test=9, seed=4)
    assert not set(contents(tmp_path / "other").values()) & set(contents(written).values())


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "data"
    write_demo_posts(out, train=5, val=2, test=2)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    write_demo_posts(out, train=5, val=2, test=2)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times


def test_other_arguments_replace_an_unchanged_folder(tmp_path: Path) -> None:
    out, fresh = tmp_path / "data", tmp_path / "fresh"
    write_demo_posts(out, train=5, val=2, test=2)
    write_demo_posts(out, train=4, val=2, test=2, seed=9)
    write_demo_posts(fresh, train=4, val=2, test=2, seed=9)
    assert contents(out) == contents(fresh)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "fresh"}


@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_a_changed_folder_is_refused_and_kept(tmp_path: Path, change: str) -> None:
    out = tmp_path / "data"
    write_demo_posts(out, train=5, val=2, test=2)
    if change == "edit":
        (out / "val.jsonl").write_text("{}\n", encoding="utf-8")
    elif change == "add":
        (out / "notes.txt").write_text("mine", encoding="utf-8")
    else:
        next((out / "images").iterdir()).unlink()
    before = contents(out)
    with pytest.raises(InputError, match="were changed"):
        write_demo_posts(out, train=6, val=2, test=2)
    assert contents(out) == before


def test_a_strange_folder_or_file_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for name in ("folder", "file"):
        with pytest.raises(InputError, match="not a folder of demo posts"):
            write_demo_posts(tmp_path / name, train=5, val=2, test=2)
    assert set(contents(tmp_path)) == {"folder/thesis.txt", "file"}


def test_an_interrupted_call_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    def interrupted(scene: Scene) -> Image.Image:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return draw_scene(scene)

    monkeypatch.setattr(demo_posts, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_demo_posts(tmp_path / "deep" / "data", train=9, val=2, test=2)
    assert contents(tmp_path) == {}
    assert not (tmp_path / "deep" / "data").exists()


def test_a_call_that_comes_second_in_a_race_accepts_the_first_ones_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sizes = tmp_path / "data", {"train": 5, "val": 2, "test": 2}
    put_in_place = demo_posts._put_in_place

    def other_comes_first(building: Path, place: Path, arguments: dict[str, object]) -> None:
        monkeypatch.setattr(demo_posts, "_put_in_place", put_in_place)
        write_demo_posts(out, **sizes)
        put_in_place(building, place, arguments)

    monkeypatch.setattr(demo_posts, "_put_in_place", other_comes_first)
    write_demo_posts(out, **sizes)
    write_demo_posts(tmp_path / "alone", **sizes)
    assert contents(out) == contents(tmp_path / "alone")
    assert {path.name for path in tmp_path.iterdir()} == {"data", "alone"}


def test_a_size_that_is_none_is_refused(tmp_path: Path) -> None:
    for size in (0, 1_000_001, 10**20):
        with pytest.raises(InputError, match=f"val is {size}, it must be at least 1 and at most 1000000"):
            write_demo_posts(tmp_path / "data", val=size)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("damage", "row"),
    [
        (lambda lines: [lines[0], lines[1][:-9], *lines[2:]], 2),
        (lambda lines: [*lines, lines[0]], 62),
        (lambda lines: [lines[0].replace('"label": "', '"label": "very '), *lines[1:]], 1),
        (lambda lines: ["[]", *lines[1:]], 1),
        (lambda lines: [lines[0], json.dumps({**json.loads(lines[1]), "colour": "red"}), *lines[2:]], 2),
    ],
    ids=["cut", "repeated", "other label", "no object", "unknown key"],
)
def test_damaged_facts_are_refused_by_row(
    written: Path, tmp_path: Path, damage: Callable[[list[str]], list[str]], row: int
) -> None:
    lines = (written / "facts.jsonl").read_text(encoding="utf-8").splitlines()
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(damage(lines)), encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(f"{path}:{row}: ")):
        read_facts(path)
