"""The probes after a test: figures of models whose behaviour is known, and the whole way through the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from mulcot.callbacks import Probing
from mulcot.callbacks.probing import drawn_from
from mulcot.cli import main
from mulcot.images import load_image
from mulcot.manifests import command_key, staleness
from mulcot.metrics.probe_files import Conflict, Grounding, Probes, Unavailable, read_probes
from mulcot.types import Answer, InputError, Post, Rationale, RationaleRecord

LABELS = ("positive", "neutral", "negative")
QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
SHORT = ["--model.init_args.max_new_tokens", "24"]
Judge = Callable[[Post], str]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A tiny image-text model of known weights: its configuration and these."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    path = folder / "tiny_for_probes.json"
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    torch.manual_seed(3)
    open_clip.add_model_config(path)
    torch.save(open_clip.create_model(path.stem).state_dict(), folder / "weights.pt")
    return str(path), str(folder / "weights.pt")


@pytest.fixture
def posts(tmp_path: Path) -> list[Post]:
    """Ten posts whose texts are glad or sad in turns, and whose pictures are, in pairs."""
    made = []
    for number in range(10):
        bright = number // 2 % 2
        Image.new("RGB", (32, 32), (200 * bright + number, 0, 0)).save(tmp_path / f"{number}.png")
        text = f"{('glad', 'sad')[number % 2]} {number}"
        made.append(Post(f"p{number}", text, tmp_path / f"{number}.png", None, LABELS[2 * (number % 2)]))
    return made


def by_text(post: Post) -> str:
    return {"glad": "positive", "sad": "negative"}.get(post.text.split(" ")[0], "neutral")


def by_picture(post: Post) -> str:
    red, green, _ = load_image(post.image).getpixel((0, 0))
    return "neutral" if green else "positive" if red >= 200 else "negative"


def answered(post: Post, judge: Judge) -> Answer:
    label = judge(post)
    probabilities = {name: 0.8 if name == label else 0.1 for name in LABELS}
    rationale = Rationale(f"the text says {post.text}", f"the picture is {label}", "no", f"so {label}", label)
    return Answer(post.id, label, probabilities, rationale, rationale.to_json(), "")


def probed(given: Sequence[Post], judge: Judge, folder: Path, **options: Any) -> Probes:
    """What the callback finds of a model that judges so, with a stand-in for stage, trainer and data module."""

    def judged(given: Sequence[Post]) -> list[Any]:
        reference = RationaleRecord("", Rationale("t", "a red picture", "c", "f", "x"), "teacher-predicted", "m", "h")
        return [(number, answered(post, judge), post, reference) for number, post in enumerate(given)]

    data = SimpleNamespace(leave_out=None, questions_about=lambda given, tasks: given)
    stage: Any = SimpleNamespace(
        stage_dir=folder, tasks=("reasoning", "classification"), judged=judged(given), ask=judged, device="cpu"
    )
    trainer: Any = SimpleNamespace(
        datamodule=data,
        is_global_zero=True,
        progress_bar_callback=None,
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
    )
    Probing(enabled=True, **options).on_test_end(trainer, stage)
    return read_probes(folder / "probes.json")


def test_a_model_that_reads_the_text_alone(posts: list[Post], tmp_path: Path) -> None:
    found = probed(posts, by_text, tmp_path)
    assert list(found.faithfulness) == ["image_removed", "image_swapped", "text_removed", "text_swapped"]
    for name in ("image_removed", "image_swapped"):
        changed = found.faithfulness[name]
        assert (changed.posts, changed.accuracy, changed.accuracy_before) == (10, 1.0, 1.0)
        assert (changed.labels_changed, changed.total_variation, changed.probability_change) == (0, 0, 0)
        assert changed.rationales is not None
        assert set(changed.rationales.distance.values()) == {0.0}
    removed = found.faithfulness["text_removed"]  # every label becomes neutral, which is none of the gold labels
    assert (removed.accuracy, removed.labels_changed) == (0.0, 1.0)
    assert removed.total_variation == pytest.approx(0.7)
    assert removed.probability_change == pytest.approx(-0.7)
    assert removed.rationales is not None
    assert (removed.rationales.parse_rate, removed.rationales.predictions_changed) == (1.0, 1.0)
    # "the text says glad 0" against "the text says": 3 words of 5 and of 3 in common.
    assert removed.rationales.distance["Text_analysis"] == pytest.approx(1 - 2 * 3 / 8)
    assert removed.rationales.distance["Image_analysis"] == pytest.approx(1 / 4)
    assert removed.rationales.distance["Conflict_resolution"] == 0
    swapped = found.faithfulness["text_swapped"]
    assert swapped.accuracy == pytest.approx(1 - (swapped.labels_changed or 0))
    assert swapped.total_variation == pytest.approx(0.7 * (swapped.labels_changed or 0))
    assert isinstance(found.conflict, Conflict)
    assert (found.conflict.yes.posts, found.conflict.yes.accuracy) == (10, 1.0), "the picture alone says neutral"


def test_a_model_that_looks_at_the_picture_alone(posts: list[Post], tmp_path: Path) -> None:
    found = probed(posts, by_picture, tmp_path)
    for name in ("text_removed", "text_swapped"):
        changed = found.faithfulness[name]
        assert (changed.labels_changed, changed.total_variation) == (0, 0)
        assert changed.accuracy == changed.accuracy_before == 0.5
    assert found.faithfulness["image_removed"].labels_changed == 1
    assert found.faithfulness["image_removed"].accuracy == 0
    assert 0 < (found.faithfulness["image_swapped"].labels_changed or 0) <= 1


def test_a_model_that_looks_at_nothing(posts: list[Post], tmp_path: Path) -> None:
    found = probed(posts, lambda post: "positive", tmp_path, posts=7)
    assert found.posts == 7
    assert {changed.labels_changed for changed in found.faithfulness.values()} == {0.0}
    assert isinstance(found.conflict, Conflict)
    assert (found.conflict.yes.posts, found.conflict.no.posts) == (0, 7)


def test_the_answer_follows_the_other_aspect_of_the_same_post(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    labels = dict(zip(("sun", "rain", "wind"), LABELS, strict=True))
    posts = [Post(name, "sun rain wind", tmp_path / "a.png", name, label) for name, label in labels.items()]
    found = probed(posts, lambda post: labels.get(post.aspect or "", "neutral"), tmp_path)
    assert found.other_aspects is not None
    assert found.other_aspects.model_dump() == {
        "posts": 3,
        "follows": 1.0,
        "differing": 3,
        "differing_follows": 1.0,
        "differing_stays": 0.0,
    }
    assert found.faithfulness["aspect_swapped"].accuracy == 0
    assert found.faithfulness["aspect_removed"].accuracy == pytest.approx(1 / 3), "neutral is right once"
    assert found.faithfulness["image_swapped"].posts == 0, "there is no other picture"
    assert found.faithfulness["image_swapped"].labels_changed is None


def test_rationales_against_pictures(posts: list[Post], tmp_path: Path, clip: tuple[str, str]) -> None:
    import open_clip

    found = probed(posts, by_picture, tmp_path, clip_model=clip[0], clip_pretrained=clip[1], shuffles=3).grounding
    assert isinstance(found, Grounding)
    assert (found.clip_model, found.clip_pretrained, found.shuffles) == (*clip, 3)
    assert (found.student.posts, found.reference.posts) == (10, 10)
    model, _, transform = open_clip.create_model_and_transforms(Path(clip[0]).stem, pretrained=clip[1])
    tokens = open_clip.get_tokenizer(Path(clip[0]).stem)([f"the picture is {by_picture(post)}" for post in posts])
    with torch.inference_mode():
        texts = model.eval().encode_text(tokens)
        pictures = model.encode_image(torch.stack([transform(load_image(post.image)) for post in posts]))
        own = torch.nn.functional.cosine_similarity(texts, pictures)
    assert found.student.own == pytest.approx(float(own.mean()), abs=1e-5)
    assert found.reference.wins is not None
    assert found.reference.interval is not None


def test_which_posts_are_drawn_is_the_seed_s_alone() -> None:
    judged: list[Any] = [(number, None, None, None) for number in range(50)]
    drawn = drawn_from(judged, 8, seed=0)
    assert len(drawn) == 8
    assert drawn == sorted(drawn)
    assert drawn == drawn_from(judged, 8, seed=0) != drawn_from(judged, 8, seed=1)
    assert drawn_from(judged[:3], 8, seed=0) == judged[:3]


@pytest.mark.parametrize("name", ["posts", "shuffles"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"probes\.{name} is 0; it must be 1 or more"):
        Probing(**{name: 0})


def command(chain: Path, *args: object) -> list[str]:
    """The verb on the chain's student."""
    given = ["test", "--config", "student.yaml", "--config", "experiment/probes.yaml", "--run_dir", chain, *args]
    return [str(part) for part in [*given, *QUICK, *SHORT]]


@pytest.fixture(scope="module")
def first(chain: Path, clip: tuple[str, str]) -> Probes:
    """The student's probes on eight posts."""
    weights = ["--probes.clip_model", clip[0], "--probes.clip_pretrained", clip[1]]
    assert main(command(chain, "--probes.posts", 8, *weights)) == 0
    return read_probes(chain / "student" / "probes.json")


def test_the_whole_way(chain: Path, first: Probes) -> None:
    assert first.posts == 8
    assert list(first.faithfulness) == [
        f"{part}_{how}" for part in ("image", "text", "aspect") for how in ("removed", "swapped")
    ]
    for changed in first.faithfulness.values():
        assert (changed.posts, changed.golds) == (8, 8)
        assert changed.rationales is not None
        assert (changed.total_variation or 0) > 0, "even this student reads all of the post"
    assert isinstance(first.grounding, Grounding)
    assert first.grounding.reference.posts == 8

    # The answers before are those of the test itself.
    lines = [json.loads(line) for line in (chain / "student" / "predictions-test.jsonl").read_text().splitlines()]
    drawn = drawn_from([(number, None, None, None) for number in range(len(lines))], 8, seed=0)  # type: ignore[misc]
    right = [lines[number]["label"] == lines[number]["gold"] for number, *_ in drawn]
    assert first.faithfulness["image_removed"].accuracy_before == sum(right) / 8

    # And those after are those of a test of altered posts.
    assert main([*command(chain, "--probes.enabled", "false", "--data.init_args.leave_out", "image")]) == 0
    less = [json.loads(line) for line in (chain / "student" / "predictions-test.jsonl").read_text().splitlines()]
    moved = [
        sum(abs(one["probabilities"][name] - other["probabilities"][name]) for name in LABELS) / 2
        for one, other in ((lines[number], less[number]) for number, *_ in drawn)
    ]
    assert first.faithfulness["image_removed"].total_variation == pytest.approx(sum(moved) / 8, abs=1e-5)


def test_a_finished_stage_stays_finished(chain: Path, first: Probes) -> None:
    fit = ["fit", "--config", "student.yaml", "--trainer.max_epochs", "2", *SHORT]
    fit += ["--trainer.log_every_n_steps", "1", "--run_dir", str(chain), *QUICK]
    assert staleness(chain / "student", command_key(fit)) is None


def test_batches_do_not_matter_and_without_weights_there_is_a_reason(chain: Path, first: Probes) -> None:
    assert main(command(chain, "--probes.posts", 8, "--data.init_args.eval_batch_size", 3)) == 0
    again = read_probes(chain / "student" / "probes.json")
    for name, changed in first.faithfulness.items():
        assert again.faithfulness[name].model_dump(exclude={"rationales"}) == pytest.approx(
            changed.model_dump(exclude={"rationales"}), abs=1e-5
        )
    assert again.conflict == first.conflict
    assert isinstance(again.grounding, Unavailable)
    assert "probes.clip_pretrained" in again.grounding.unavailable


def test_a_part_that_is_left_out_is_not_probed(chain: Path) -> None:
    alone = ["--probes.posts", 3, "--data.init_args.leave_out", "text"]
    assert main(command(chain, *alone)) == 0
    found = read_probes(chain / "student" / "probes.json")
    assert list(found.faithfulness) == ["image_removed", "image_swapped", "aspect_removed", "aspect_swapped"]
    assert isinstance(found.conflict, Unavailable)


def test_weights_that_are_not_there_stop_the_run_before_it_asks(
    chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (chain / "student" / "metrics-test.json").stat().st_mtime_ns
    assert main(command(chain, "--probes.clip_pretrained", "/nowhere/weights.pt")) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mulcot: error: ")]
    assert "probes: ViT-B-32 (/nowhere/weights.pt) cannot be loaded" in line
    assert (chain / "student" / "metrics-test.json").stat().st_mtime_ns == before


def test_a_fit_may_end_with_them(chain: Path) -> None:
    fit = ["fit", "--config", "student.yaml", "--config", "experiment/labels_only.yaml", "--trainer.max_epochs", "1"]
    fit += ["--config", "experiment/probes.yaml", "--probes.posts", "4", "--run_dir", str(chain), "--stage", "probed"]
    assert main([*fit, *QUICK]) == 0
    found = read_probes(chain / "probed" / "probes.json")
    assert [changed.rationales for changed in found.faithfulness.values()] == [None] * 6
    manifest = json.loads((chain / "probed" / "manifest.json").read_text())
    assert "predictions.jsonl" in manifest["outputs"]
    assert "probes.json" not in manifest["outputs"]


@pytest.mark.slow
def test_two_processes_find_what_one_finds(chain: Path, first: Probes) -> None:
    two = ["--probes.posts", 8, "--trainer.devices", 2, "--trainer.strategy", "ddp"]
    done = subprocess.run(
        [sys.executable, "-m", "mulcot", *command(chain, *two)],
        capture_output=True, text=True, timeout=600, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = read_probes(chain / "student" / "probes.json")
    for name, changed in first.faithfulness.items():
        assert found.faithfulness[name].model_dump(exclude={"rationales"}) == pytest.approx(
            changed.model_dump(exclude={"rationales"}), abs=1e-5
        )
        assert found.faithfulness[name].rationales == changed.rationales
    assert found.conflict == first.conflict
