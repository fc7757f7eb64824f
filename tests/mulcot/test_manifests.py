"""Manifests: what makes a stage stale, and what does not."""

import hashlib
import json
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mulcot.manifests import (
    Manifest,
    command_key,
    digest,
    git_revision,
    input_digests,
    make_manifest,
    output_digests,
    read_manifest,
    staleness,
    write_manifest,
)
from mulcot.types import InputError, MissingInputError


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("lr: 1")
    (tmp_path / "b.yaml").write_text("lr: 2")
    return tmp_path


FIT = ["fit", "--config", "a.yaml", "--run_dir", "runs/demo", "--stage", "student", "--seed_everything", "1"]


def finish(folder: Path, argv: list[str], inputs: list[Path], text: str = "result") -> Manifest:
    """A stage that reads `inputs` and writes one file."""
    recorded = input_digests(folder, inputs)
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "weights.bin").write_text(text)
    outputs = output_digests(folder, [folder / "model"])
    manifest = make_manifest(argv, inputs=recorded, outputs=outputs, seed=1, started=datetime.now(UTC))
    write_manifest(folder, manifest)
    return manifest


@pytest.mark.parametrize(
    "same",
    [
        [*FIT, "--fresh"],
        [*FIT, "--jobs", "4", "--yes", "--debug"],
        [*FIT, "--jobs=4", "--fresh=true"],
        [*FIT, "--fresh", "true"],
        [part.replace("runs/demo", "elsewhere") for part in FIT],
        [part.replace("a.yaml", "copy.yaml") for part in FIT],
        ["fit", "--config=a.yaml", "--run_dir=runs/demo", "--stage=student", "--seed_everything=1"],
        ["fit", "-c", "a.yaml", *FIT[3:]],
    ],
)
def test_key_ignores_place_manner_and_spelling(same: list[str]) -> None:
    shutil.copy("a.yaml", "copy.yaml")
    assert command_key(same) == command_key(FIT)


@pytest.mark.parametrize(
    "other",
    [
        ["test", *FIT[1:]],
        [part.replace("a.yaml", "b.yaml") for part in FIT],
        [*FIT, "--config", "b.yaml"],
        ["fit", "--config", "b.yaml", *FIT[1:]],
        [*FIT[:-1], "2"],
        [*FIT, "--trainer.max_epochs", "3"],
    ],
)
def test_key_changes_with_verb_content_order_and_arguments(other: list[str]) -> None:
    assert command_key(other) != command_key(FIT)


def test_key_depends_on_the_order_of_configs() -> None:
    first = command_key(["fit", "--config", "a.yaml", "--config", "b.yaml"])
    assert first != command_key(["fit", "--config", "b.yaml", "--config", "a.yaml"])


def test_key_follows_the_content_of_a_config() -> None:
    before = command_key(FIT)
    Path("a.yaml").write_text("lr: 3")
    assert command_key(FIT) != before


def test_key_counts_paths_inside_the_run_as_relative() -> None:
    def command(home: str) -> list[str]:
        return [
            "tiny-models",
            "--out",
            f"{home}/models",
            "--posts",
            f'["{home}/posts/a.jsonl", "{home}/posts/b.jsonl"]',
        ]

    assert command_key(command("runs/a")) == command_key(command("/far/away"))
    assert command_key(command("runs/a")) != command_key([*command("runs/a")[:-1], '["other/posts/a.jsonl"]'])
    beside = ["tiny-models", "--out", "runs/a/models", "--posts", "runs/ab/posts"]  # `runs/ab` is not inside `runs/a`
    moved = ["tiny-models", "--out", "runs/c/models", "--posts", "runs/cb/posts"]
    assert command_key(beside) != command_key(moved)


def test_key_of_an_unknown_config_names_it() -> None:
    with pytest.raises(InputError, match=r"none\.yaml"):
        command_key(["fit", "--config", "none.yaml"])


def test_digest_of_a_file_is_its_sha256(work: Path) -> None:
    assert digest(work / "a.yaml") == hashlib.sha256(b"lr: 1").hexdigest()


def test_digest_of_a_folder_sees_names_and_contents(work: Path) -> None:
    def make(name: str, **texts: str) -> str:
        for file, text in texts.items():
            (work / name / "inner").mkdir(parents=True, exist_ok=True)
            (work / name / "inner" / file).write_text(text)
        return digest(work / name)

    assert make("one", x="1", y="2") == make("two", y="2", x="1")
    assert make("one") != make("three", x="2", y="1")
    assert make("one") != make("four", x="1", z="2")


def test_digest_of_nothing_is_a_missing_input() -> None:
    with pytest.raises(MissingInputError, match="nowhere"):
        digest(Path("nowhere"))


def test_digest_of_a_stage_outlives_a_run_with_the_same_result(work: Path) -> None:
    stage = work / "runs" / "demo" / "teacher"
    finish(stage, FIT, [work / "a.yaml"])
    first = digest(stage)
    (stage / "log.txt").write_text("another time")
    finish(stage, FIT, [])
    assert digest(stage) == first
    finish(stage, FIT, [], text="other result")
    assert digest(stage) != first


def test_manifest_comes_back_as_it_was_written(work: Path) -> None:
    stage = work / "runs" / "demo" / "student"
    written = finish(stage, FIT, [work / "a.yaml"])
    assert read_manifest(stage) == written
    assert written.verb == "fit"
    assert written.outputs == {"model/weights.bin": hashlib.sha256(b"result").hexdigest()}
    assert {"python", "torch", "lightning", "transformers", "mulcot"} == set(written.versions)
    assert datetime.fromisoformat(written.started).tzinfo is not None
    assert written.wall_seconds >= 0
    assert sorted(path.name for path in stage.iterdir()) == ["manifest.json", "model"]


def test_inputs_inside_the_run_are_relative_and_others_absolute(work: Path) -> None:
    posts = work / "runs" / "demo" / "posts" / "posts.jsonl"
    posts.parent.mkdir(parents=True)
    posts.write_text("{}")
    recorded = input_digests(Path("runs/demo/student"), [Path("runs/demo/posts/posts.jsonl"), Path("a.yaml")])
    assert list(recorded) == ["posts/posts.jsonl", str(work / "a.yaml")]


def test_write_manifest_makes_absolute_inputs_relative_and_refuses_lost_ones(work: Path) -> None:
    stage = work / "runs" / "demo" / "student"
    stage.mkdir(parents=True)
    (work / "runs" / "demo" / "posts.jsonl").write_text("{}")

    def manifest(name: str) -> Manifest:
        return Manifest("fit", "k", {name: "0"}, {}, {}, None, None, "2026-01-01T00:00:00+00:00", 1.0)

    write_manifest(stage, manifest(str(work / "runs" / "demo" / "posts.jsonl")))
    assert json.loads((stage / "manifest.json").read_text())["inputs"] == {"posts.jsonl": "0"}
    with pytest.raises(ValueError, match=r"runs/demo/posts\.jsonl does not exist"):
        write_manifest(stage, manifest("runs/demo/posts.jsonl"))  # relative to the working folder, not to the run


def test_outputs_lie_inside_the_stage(work: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.yaml"):
        output_digests(work / "runs" / "demo" / "student", [work / "a.yaml"])


def test_staleness_says_why(work: Path) -> None:
    posts = work / "runs" / "demo" / "posts" / "posts.jsonl"
    posts.parent.mkdir(parents=True)
    posts.write_text("{}")
    stage = work / "runs" / "demo" / "student"
    key = command_key(FIT)
    assert staleness(stage, key) == "never finished"
    finish(stage, FIT, [posts, work / "b.yaml"])
    assert staleness(stage, key) is None
    assert staleness(stage, command_key([*FIT, "--x", "1"])) == "its configuration changed"
    posts.write_text("{ }")
    assert staleness(stage, key) == "input posts/posts.jsonl changed"
    posts.write_text("{}")
    assert staleness(stage, key) is None
    (work / "b.yaml").unlink()
    assert staleness(stage, key) == f"input {work / 'b.yaml'} is missing"
    (work / "b.yaml").write_text("lr: 2")
    (stage / "model" / "weights.bin").write_text("resulT")
    assert staleness(stage, key) == "output model/weights.bin changed"
    (stage / "model" / "weights.bin").unlink()
    assert staleness(stage, key) == "output model/weights.bin is missing"


def test_a_moved_run_is_not_stale(work: Path) -> None:
    posts = work / "runs" / "demo" / "posts.jsonl"
    posts.parent.mkdir(parents=True)
    posts.write_text("{}")
    finish(work / "runs" / "demo" / "student", FIT, [posts, work / "a.yaml"])
    shutil.move(work / "runs" / "demo", work / "kept")
    moved = [part.replace("runs/demo", "kept") for part in FIT]
    assert staleness(Path("kept/student"), command_key(moved)) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"verb": "fit"}', '\xff{"verb"'])
def test_a_damaged_manifest_is_named_with_its_remedy(work: Path, content: str) -> None:
    (work / "stage").mkdir()
    (work / "stage" / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"stage/manifest\.json: .*damaged.*delete this file"):
        staleness(work / "stage", "key")


def test_a_manifest_with_a_field_of_the_wrong_kind_is_damaged(work: Path) -> None:
    finish(work / "run" / "stage", FIT, [])
    path = work / "run" / "stage" / "manifest.json"
    good = json.loads(path.read_text())
    for field, wrong in {"key": 1, "inputs": ["a"], "outputs": {"a": 1}, "seed": "x", "wall_seconds": None}.items():
        path.write_text(json.dumps(good | {field: wrong}))
        with pytest.raises(InputError, match=f"`{field}`"):
            read_manifest(path.parent)


def test_git_revision_is_that_of_the_working_folder(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(work.parent))
    assert git_revision() is None
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "init", "-q"], check=True)
    assert git_revision() is None  # no commit yet
    subprocess.run(["git", *who, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    head = subprocess.run(["git", "log", "-1", "--format=%H"], check=True, capture_output=True, text=True)
    assert git_revision() == head.stdout.strip()
    monkeypatch.setenv("PATH", "")
    assert git_revision() is None
