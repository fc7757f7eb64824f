import json
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from PIL import Image

from data_modules.readers import HuggingFace
from data_modules.readers.dataset_pictures import DatasetPicture
from data_modules.readers.row_log import RowLog
from mulcot.images import load_image
from mulcot.types import InputError, Post

HUB = "owner/posts"


def picture(seed: int, size: int = 4) -> bytes:
    file = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def inside(seed: int) -> dict[str, object]:
    return {"bytes": picture(seed), "path": None}


def dataset(kinds: dict[str, Any] | None = None, split: str | None = None, **columns: list[Any]) -> Dataset:
    """A data set whose column `image` holds pictures, unless `kinds` says otherwise."""
    kinds = {"image": datasets.Image()} | (kinds or {})
    plain = Dataset.from_dict(columns).features
    features = Features({name: kinds.get(name, plain[name]) for name in columns})
    return Dataset.from_dict(columns, features=features, split=split)


def saved(folder: Path, source: Dataset | DatasetDict, **options: int) -> str:
    datasets.disable_progress_bars()
    source.save_to_disk(folder, **options)
    datasets.enable_progress_bars()
    return str(folder)


def error_of(call: Callable[..., object], *args: object, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Three splits under names of their own, with ids, aspects and a `ClassLabel`."""
    kinds = {"label": ClassLabel(names=["negative", "neutral", "positive"])}

    def part(*numbers: int) -> Dataset:
        return dataset(
            kinds,
            id=[f"p{number}" for number in numbers],
            text=[f"rain {number} in May" for number in numbers],
            image=[inside(number) for number in numbers],
            aspect=["May" if number % 2 else None for number in numbers],
            label=[number % 4 if number % 4 < 3 else -1 for number in numbers],
        )

    parts = {"train": part(0, 1, 2, 3), "validation": part(4, 5), "test": part(6), "unsupervised": part(7)}
    return saved(tmp_path / "saved", DatasetDict(parts))


def test_posts_of_every_split(path: str) -> None:
    source = HuggingFace(path)
    assert source.splits() == ("train", "val", "test")
    posts = source.read("train")
    assert [(post.id, post.text, post.aspect, post.label) for post in posts] == [
        ("p0", "rain 0 in May", None, "negative"),
        ("p1", "rain 1 in May", "May", "neutral"),
        ("p2", "rain 2 in May", None, "positive"),
        ("p3", "rain 3 in May", "May", None),
    ]
    assert [post.id for split in ("val", "test") for post in source.read(split)] == ["p4", "p5", "p6"]
    assert [post.image.read_bytes() for post in source.read("val")] == [picture(4), picture(5)]


def test_pictures_are_equal_by_their_place_and_survive_pickling(path: str) -> None:
    source = HuggingFace(path)
    first, second = (post.image for post in source.read("val"))
    again = pickle.loads(pickle.dumps(first))
    assert again == first == next(iter(HuggingFace(path).read("val"))).image
    assert hash(again) == hash(first)
    assert first not in (second, source.read("test")[0].image)
    assert again.read_bytes() == picture(4)
    assert str(second) == f"{path}/validation, row 2"
    assert np.array_equal(np.asarray(load_image(second)), np.asarray(Image.open(BytesIO(picture(5)))))
    assert pickle.loads(pickle.dumps(source)).read("val") == source.read("val")


def test_a_pickled_picture_is_small_and_needs_no_datasets(path: str, tmp_path: Path) -> None:
    posts = HuggingFace(path).read("train")
    (tmp_path / "pickle").write_bytes(pickle.dumps(posts[2].image))
    assert (tmp_path / "pickle").stat().st_size < 1000
    code = (
        "import pickle, sys; image = pickle.load(open(sys.argv[1], 'rb')); sys.stdout.buffer.write(image.read_bytes());"
        "assert 'datasets' not in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "pickle"], capture_output=True, check=True)
    assert done.stdout == picture(2)


def test_pictures_over_several_files_and_batches(tmp_path: Path) -> None:
    numbers = range(2500)
    source = dataset({"image": Value("binary")}, text=[f"post {number}" for number in numbers])
    source = source.add_column("image", [f"bytes {number}".encode() for number in numbers])
    path = saved(tmp_path / "saved", source, num_shards=3)
    posts = HuggingFace(path).read("train")
    assert [post.id for post in posts] == [f"train-{number}" for number in range(1, 2501)]
    assert [post.image.read_bytes() for post in posts] == [f"bytes {number}".encode() for number in numbers]


def test_pictures_stay_on_disk_while_posts_are_read(tmp_path: Path) -> None:
    big = [{"bytes": bytes([number]) * 1_000_000, "path": None} for number in range(20)]
    path = saved(tmp_path / "saved", dataset(text=["rain"] * 20, image=big))
    source = HuggingFace(path)
    source.splits()
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    held = [pa.total_allocated_bytes() - before for _ in source.entries("train", RowLog())]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(held) == 20
    assert max(held) < 500_000
    assert peak < 500_000


def test_paths_relative_to_an_image_root(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture(1))
    rows = {"text": ["rain", "hail"], "image": ["a.png", "b.png"]}
    path = saved(tmp_path / "saved", dataset({"image": Value("string")}, **rows))
    source = HuggingFace(path, image_root=tmp_path)
    assert [post.image for post in source.read("train")] == [tmp_path / "a.png", tmp_path / "b.png"]
    (tmp_path / "b.png").unlink()
    assert f"{path}, row 2, field 'image': there is no picture 'b.png' in" in error_of(source.read, "train")
    assert len(HuggingFace(path, image_root=tmp_path, check_images=False).read("train")) == 2
    assert "column 'image': it holds paths; give the folder" in error_of(HuggingFace(path).read, "train")


def test_image_features_with_paths_only(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "b.png").write_bytes(picture(2))
    rows = [{"bytes": None, "path": "a.png"}, inside(7), {"bytes": None, "path": "../b.png"}, None]
    source = dataset({"image": {"bytes": Value("binary"), "path": Value("string")}}, text=["rain"] * 4, image=rows)
    path = saved(tmp_path / "saved", source)
    log = RowLog("skip")
    posts = HuggingFace(path, image_root=tmp_path).read("train", log)
    assert [post.id for post in posts] == ["train-1", "train-2"]
    assert posts[0].image == tmp_path / "a.png"
    assert posts[1].image.read_bytes() == picture(7)
    assert [bad.problem for bad in log.bad] == ["'../b.png' goes up with '..'", "it is missing"]
    error = error_of(HuggingFace(path).read, "train")
    assert "row 1, field 'image': 'a.png' is a path, and its picture is not in the table; give the folder" in error


def test_a_saved_image_feature_of_a_path_has_its_bytes_inside(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    path = saved(tmp_path / "saved", dataset(text=["rain"], image=[str(tmp_path / "a.png")]))
    (tmp_path / "a.png").unlink()
    assert HuggingFace(path).read("train")[0].image.read_bytes() == picture(1)


def test_columns_and_labels_of_other_names(tmp_path: Path) -> None:
    rows = {"tweet": ["rain"], "photo": [inside(1)], "id": [7], "aspect": ["wet"], "gold": ["POS"], "likes": [3]}
    path = saved(tmp_path / "saved", dataset({"photo": datasets.Image()}, **rows))
    columns = {"text": "tweet", "image": "photo", "label": "gold"}
    source = HuggingFace(path, columns={**columns, "aspect": None}, label_names={"POS": "positive"})
    (post,) = source.read("train")
    assert (post.id, post.text, post.aspect, post.label) == ("7", "rain", None, "positive")
    source = HuggingFace(path, columns={**columns, "id": None, "label": None}, aspect_in_text=False)
    (post,) = source.read("train")
    assert (post.id, post.aspect, post.label) == ("train-1", "wet", None)
    whole = HuggingFace(path, columns=columns, label_names={"POS": "positive"})
    assert "field 'aspect': 'wet' does not stand in the text" in error_of(whole.read, "train")


@pytest.mark.parametrize(
    ("label", "names", "expected"),
    [
        (0, {"0": "negative", "1": "positive"}, "negative"),
        (1, {0: "negative", 1: "positive"}, "positive"),
        ("bad", {"bad": "negative"}, "negative"),
        ("neutral", None, "neutral"),
        (0, None, "0 is a number; say what such codes stand for (label_names: {'0': positive, ...})"),
        (2, {"0": "negative"}, "'2' is not in label_names; use one of '0' (negative), or name it in `label_names`"),
        (1.0, {"1": "negative"}, "1.0 is a decimal number; write 1"),
        (True, {"1": "negative"}, "True is no text"),
        ("Neutral", None, "'Neutral' differs from a label in capitals or blanks; write 'neutral'"),
        ("angry", None, "unknown label 'angry'"),
        ("angry", {"POS": "positive"}, "'angry' is not in label_names"),
        ("", {"POS": "positive"}, "it is empty"),
        (["POS"], {"POS": "positive"}, "['POS'] is no text"),
    ],
)
def test_plain_labels(tmp_path: Path, label: object, names: dict[Any, str] | None, expected: str) -> None:
    path = saved(tmp_path / "saved", dataset(text=["rain"], image=[inside(1)], label=[label]))
    source = HuggingFace(path, label_names=names)
    if expected in source.labels:
        assert source.read("train")[0].label == expected
    else:
        assert f"{path}, row 1, field 'label': {expected}" in error_of(source.read, "train")


def test_names_of_a_class_label_are_the_labels_or_get_one(tmp_path: Path) -> None:
    kinds = {"gold": ClassLabel(names=["NEG", "POS"])}
    path = saved(tmp_path / "saved", dataset(kinds, text=["rain", "sun"], image=[inside(1)] * 2, gold=[1, 0]))
    columns = {"label": "gold"}
    source = HuggingFace(path, columns=columns, label_names={"POS": "positive", "NEG": "negative"})
    assert [post.label for post in source.read("train")] == ["positive", "negative"]
    error = error_of(HuggingFace(path, columns=columns).read, "train")
    assert "row 1, field 'gold': 'POS' stands for no label; give each of the column's names 'NEG', 'POS' a" in error
    assert "label_names: {'POS': positive, ...}" in error


def test_a_single_dataset_is_the_split_that_it_was_taken_from(tmp_path: Path) -> None:
    rows = {"text": ["rain"], "image": [inside(1)]}
    named = HuggingFace(saved(tmp_path / "named", dataset(None, "validation", **rows)))
    assert named.splits() == ("val",)
    assert named.read("val")[0].id == "val-1"
    plain = saved(tmp_path / "plain", dataset(**rows))
    assert HuggingFace(plain).splits() == ("train",)
    assert HuggingFace(plain, splits_of={"test": "train"}).splits() == ("test",)


def test_splits_by_their_names(path: str) -> None:
    source = HuggingFace(path, splits_of={"train": "unsupervised", "val": "test"})
    assert source.splits() == ("train", "val")
    assert [post.id for post in source.read("train")] == ["p7"]
    error = error_of(source.read, "test")
    assert error == (
        f"{path}: there is no split for 'test'; name one of 'train', 'validation', 'test', 'unsupervised' in splits_of"
    )
    missing = HuggingFace(path, splits_of={"val": "dev"})
    assert f"splits_of: {path} has no split 'dev'; use one of 'train', 'validation'" in error_of(missing.splits)
    twice = HuggingFace(path, splits_of={"val": "test", "test": "test"})
    assert error_of(twice.splits) == "splits_of: 'test' comes twice; give every split posts of its own"


@pytest.mark.parametrize("name", ["validation", "val", "dev"])
def test_the_names_of_the_validation_split(tmp_path: Path, name: str) -> None:
    part = dataset(text=["rain"], image=[inside(1)])
    assert HuggingFace(saved(tmp_path / "saved", DatasetDict({name: part}))).splits() == ("val",)


def test_an_id_stands_once_in_all_splits(tmp_path: Path) -> None:
    def part(*ids: object) -> Dataset:
        return dataset(id=list(ids), text=["rain"] * len(ids), image=[inside(1)] * len(ids))

    path = saved(tmp_path / "saved", DatasetDict({"train": part("a", "b", None), "test": part("b", "c", "c")}))
    log = RowLog("skip")
    assert [post.id for post in HuggingFace(path).read("train", log)] == ["a", "b"]
    assert [post.id for post in HuggingFace(path).read("test", log)] == ["c"]
    assert [str(bad) for bad in log.bad] == [
        f"{path}/train, row 3, field 'id': it is missing; give it a text",
        f"{path}/test, row 1, field 'id': the id 'b' already stands at {path}/train, row 2; "
        "give every post an id of its own",
        f"{path}/test, row 3, field 'id': the id 'c' already stands at {path}/test, row 2; "
        "give every post an id of its own",
    ]
    numbered = HuggingFace(path, columns={"id": None})
    assert [post.id for split in ("train", "test") for post in numbered.read(split)][2:4] == ["train-3", "test-1"]


def test_of_two_equal_ids_that_of_the_later_split_is_wrong(tmp_path: Path) -> None:
    def part(*ids: str) -> Dataset:
        return dataset(id=list(ids), text=["rain"] * len(ids), image=[inside(1)] * len(ids))

    path = saved(tmp_path / "saved", DatasetDict({"test": part("b", "c"), "train": part("a", "b")}))
    for split in ("train", "test"):
        assert f"test, row 1, field 'id': the id 'b' already stands at {path}/train, row 2" in error_of(
            HuggingFace(path).read, split
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"tweet": "text"}}, "columns: there is no field 'tweet'; the fields are id, text, image, aspect"),
        ({"columns": {"text": ""}}, "columns: text: '' is no name of a column; give it as a text"),
        ({"columns": {"image": None}}, "columns: image cannot be null; name the column that holds it"),
        ({"label_names": {"1": "good"}}, "label_names: '1' stands for 'good', which is no label; use positive, "),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    assert message in error_of(HuggingFace, "anywhere", **options)


def test_columns_that_are_not_there(path: str) -> None:
    for field in ("text", "label"):
        error = error_of(HuggingFace(path, columns={field: "x"}).read, "train")
        assert error == (
            f"{path}/train: there is no column 'x', the columns are 'id', 'text', 'image', 'aspect', 'label'; "
            f"say in the reader's arguments which one holds the {field}, as columns: {{{field}: NAME}}"
        )


def test_a_column_without_one_picture_a_post(tmp_path: Path) -> None:
    kinds = {"many": List(datasets.Image())}
    rows = {"text": ["rain"], "many": [[inside(1), inside(2)]], "count": [3]}
    path = saved(tmp_path / "saved", dataset(kinds, **rows))
    error = error_of(HuggingFace(path).read, "train")
    assert error.startswith(f"{path}: there is no column 'image', the columns are 'text', 'many', 'count'; say in ")
    error = error_of(HuggingFace(path, columns={"image": "many"}).read, "train")
    assert error == f"{path}, column 'many': it holds several pictures a post; name a column with one picture"
    error = error_of(HuggingFace(path, columns={"image": "count"}).read, "train")
    assert error == f"{path}, column 'count': it holds 'int64'; use datasets.Image, bytes or paths"


def without_rows(folder: Path) -> None:
    """A saved split as datasets 5.2 saves one without rows, and fails on it later; earlier ones do not save it."""
    next(folder.glob("*.arrow")).unlink()
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"_data_files": []}, indent=2))


def test_an_empty_data_set(tmp_path: Path) -> None:
    path = saved(tmp_path / "saved", dataset(text=["rain"], image=[inside(1)]))
    without_rows(tmp_path / "saved")
    assert error_of(HuggingFace(path).read, "train").startswith(f"{path}: it holds no posts; save it with at least one")
    path = saved(tmp_path / "single", dataset(text=["rain"], image=[inside(1)]))
    arrow = tmp_path / "single" / "data-00000-of-00001.arrow"
    schema = pa.ipc.open_stream(arrow.read_bytes()).schema
    with pa.ipc.new_stream(arrow, schema):
        pass
    assert f"{path}: it holds no posts; " in error_of(HuggingFace(path).read, "train")


def test_an_empty_split(tmp_path: Path) -> None:
    part = dataset(text=["rain"], image=[inside(1)])
    path = saved(tmp_path / "saved", DatasetDict({"train": part, "test": part}))
    without_rows(tmp_path / "saved" / "test")
    assert error_of(HuggingFace(path).read, "train").startswith(f"{path}/test: it holds no posts; save it with")


def test_folders_without_a_data_set(tmp_path: Path, path: str) -> None:
    assert "it holds no saved data set; give a folder that" in error_of(HuggingFace(str(tmp_path)).splits)
    assert "it is no name on the hub; give a folder that" in error_of(HuggingFace(f"{tmp_path}/x").splits)
    error = error_of(HuggingFace(path, revision="main").splits)
    assert error == f"{path}: name and revision are for the hub; leave them out for a folder"


@pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "state.json", "dataset_info.json"])
def test_damaged_folders(path: str, name: str) -> None:
    (Path(path) / "train" / name).write_bytes(b"{")
    assert error_of(HuggingFace(path).splits).startswith(f"{path}: it cannot be loaded (")
    (Path(path) / "train" / name).unlink()
    assert error_of(HuggingFace(path).splits).startswith(f"{path}: it cannot be loaded (")


def test_a_picture_whose_file_is_gone(path: str) -> None:
    (post,) = HuggingFace(path).read("test")
    next((Path(path) / "test").glob("*.arrow")).unlink()
    assert error_of(post.image.read_bytes).startswith(f"{path}/test, row 1: the data set's file cannot be read (No ")


def test_a_folder_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = saved(tmp_path / "saved", dataset(text=["rain"], image=[inside(1)]))
    (post,) = HuggingFace(path).read("train")
    assert post.image.read_bytes() == picture(1)
    saved(tmp_path / "other", dataset(text=["rain"], image=[inside(2)]))
    arrow = "data-00000-of-00001.arrow"
    (tmp_path / "other" / arrow).replace(tmp_path / "saved" / arrow)
    assert post.image.read_bytes() == picture(2)


def test_files_are_those_that_were_saved(path: str) -> None:
    source = HuggingFace(path)
    (Path(path) / "train" / "cache-0123456789abcdef.arrow").write_bytes(b"")
    parts = ("data-00000-of-00001.arrow", "dataset_info.json", "state.json")
    splits = ("test", "train", "unsupervised", "validation")
    expected = [Path(path) / "dataset_dict.json", *(Path(path) / split / part for split in splits for part in parts)]
    assert source.files() == sorted(expected)
    assert HuggingFace(HUB).files() == []


def test_progress_bars_are_left_as_they_were(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    for switch in (datasets.disable_progress_bars, datasets.enable_progress_bars):
        switch()
        before = datasets.are_progress_bars_disabled()
        HuggingFace(path).read("train")
        assert datasets.are_progress_bars_disabled() == before
    assert capfd.readouterr() == ("", "")


def test_importing_the_readers_loads_nothing_heavy() -> None:
    code = "import sys, data_modules.readers; print([name for name in ('datasets', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "[]\n"


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    error = error_of(HuggingFace("nobody/nothing").splits)
    assert error == (
        "nobody/nothing: there is no such folder, and the hub cannot be reached to look for it; give a folder that "
        "datasets.save_to_disk wrote, or read it where there is a network"
    )


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Revision 'x' doesn't exist"),
            "nor does the hub show it to you (Rev",
        ),
        (ConnectionError("Couldn't reach"), "the hub cannot be reached to look for it"),
        (
            ValueError("BuilderConfig 'x' not found.\nAvailable: ['y']"),
            "(BuilderConfig 'x' not found. Available: ['y'])",
        ),
        (RuntimeError("Dataset scripts are no longer supported"), "cannot be loaded (Dataset scripts are no longer"),
    ],
)
def test_what_the_hub_refuses(monkeypatch: pytest.MonkeyPatch, raised: Exception, message: str) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    assert message in error_of(HuggingFace(HUB, name="x").splits)


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str) -> None:
    asked = []

    def load(*args: object, **options: object) -> DatasetDict:
        asked.append((args, options))
        return datasets.load_from_disk(path)

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = HuggingFace(HUB, name="small", revision="v1")
    (post,) = source.read("test")
    assert post == Post(
        id="p6",
        text="rain 6 in May",
        image=DatasetPicture(f"{HUB}/test", 0, None),
        label="positive",
    )
    assert post.image.read_bytes() == picture(6)
    source.read("train")
    assert asked == [((HUB, "small"), {"revision": "v1", "keep_in_memory": False})]


def test_a_downloaded_picture_lies_in_the_cache_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "a.png").write_bytes(picture(1))
    (tmp_path / "b.png").write_bytes(picture(2))
    (cache / "c.png").symlink_to(tmp_path / "b.png")
    paths = [str(cache / "a.png"), str(tmp_path / "b.png"), str(cache / "c.png"), "a.png"]
    rows = [{"bytes": None, "path": name} for name in paths]
    kinds = {"image": {"bytes": Value("binary"), "path": Value("string")}}
    saved(tmp_path / "saved", DatasetDict({"train": dataset(kinds, text=["rain"] * 4, image=rows)}))
    loaded = datasets.load_from_disk(tmp_path / "saved")
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: loaded)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    log = RowLog("skip")
    assert [post.image for post in HuggingFace(HUB).read("train", log)] == [cache / "a.png"]
    assert [bad.row.number for bad in log.bad] == [2, 3, 4]


def test_numbers_beyond_the_names_of_a_class_label(tmp_path: Path) -> None:
    rows = {"text": ["rain"], "image": [inside(1)], "label": [5]}
    path = saved(tmp_path / "saved", dataset(**rows))
    info = Path(path) / "dataset_info.json"
    values = json.loads(info.read_text())
    values["features"]["label"] = {"names": ["positive", "negative"], "_type": "ClassLabel"}
    info.write_text(json.dumps(values))
    error = error_of(HuggingFace(path).read, "train")
    assert "field 'label': 5 has no name; number the names of the column from 0 on: 'positive', 'negative'" in error
