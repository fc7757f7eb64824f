"""A part left out of every post: everywhere alike, and never with what was made of the whole posts."""

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from data_modules import post_table
from data_modules.multimodal import MultimodalDataModule
from data_modules.post_table import AlteredPosts, PostTable
from data_modules.readers import Converted, Table
from mulcot.ablations import GreyPicture
from mulcot.cli import main
from mulcot.images import upright_size
from mulcot.types import InputError

QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
FEW = ["--data.init_args.limit", "8", "--trainer.log_every_n_steps", "1"]
ALONE = ["--config", "student.yaml", "--config", "experiment/labels_only.yaml"]


def error_of(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    assert main([str(arg) for arg in args]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mulcot: error: ")]
    return line


def posts_of(run: Path, split: str) -> Table:
    return Table({split: run / "posts" / "posts" / f"{split}.jsonl"}, run / "posts" / "posts" / "images")


def test_posts_of_a_conversion_are_altered_one_by_one(
    embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = embedded / "posts" / "posts"
    files = json.dumps({"test": str(folder / "test.jsonl")})
    given = ["--posts", "Table", "--posts.files", files, "--posts.image_root", str(folder / "images")]
    assert main(["data", "convert", *given, "--out", str(tmp_path / "out"), "--embed_images"]) == 0
    whole = Converted(tmp_path / "out").read("test")
    data = MultimodalDataModule(Converted(tmp_path / "out"), leave_out="image", limit=7)
    posts = data.posts("test")
    assert isinstance(posts, AlteredPosts)
    assert [post.image for post in posts] == [GreyPicture(post.image) for post in whole[:7]]
    assert [post.text for post in posts[2:4]] == [post.text for post in whole[2:4]]
    monkeypatch.setattr(PostTable, "__getitem__", None)  # ids, labels and sizes come from the columns
    assert post_table.ids_of(posts) == post_table.ids_of(whole)[:7]
    assert sum(post_table.label_counts(posts).values()) == 7
    assert data.has_aspects("test")


def test_no_aspect_can_be_left_out_where_there_is_none(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "val.jsonl").write_text(json.dumps({"id": "1", "text": "Hail", "image": "a.png"}) + "\n")
    data = MultimodalDataModule(Table({"val": tmp_path / "val.jsonl"}, tmp_path), leave_out="aspect")
    with pytest.raises(InputError, match=r"leave_out is aspect, and no post of val has one; leave it null"):
        data.posts("val")


@pytest.mark.parametrize("part", ["image", "text", "aspect"])
def test_soft_labels_of_whole_posts_are_refused(chain: Path, capsys: pytest.CaptureFixture[str], part: str) -> None:
    fit = ["fit", "--config", "student.yaml", "--run_dir", chain, "--stage", f"less_{part}", *QUICK]
    line = error_of(capsys, *fit, "--data.init_args.leave_out", part)
    assert "the cache has them for another text, aspect or picture of this post, so it is stale" in line


def test_soft_labels_made_without_pictures_are_for_a_student_without_them(
    chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    less = ["--data.init_args.leave_out", "image", "--run_dir", str(chain), *QUICK, *FEW]
    assert main(["predict", "--config", "soft_labels.yaml", "--stage", "soft_less", *less]) == 0
    cache = ["--data.init_args.soft_labels", str(chain / "soft_less" / "cache"), "--test_after_fit", "false"]
    fit = ["fit", "--config", "student.yaml", "--trainer.max_epochs", "1", *cache]
    assert main([*fit, "--stage", "student_less", *less]) == 0
    assert "so it is stale" in error_of(capsys, *fit, "--stage", "mixed", *less[2:])


def test_a_student_trained_and_asked_without_pictures_answers_as_if_every_file_were_grey(
    embedded: Path, tmp_path: Path
) -> None:
    common = ["--run_dir", str(embedded), "--stage", "blind", *QUICK]
    assert main(["fit", *ALONE, "--config", "experiment/without_image.yaml", "--trainer.max_epochs", "1", *common]) == 0
    blind = [json.loads(line) for line in (embedded / "blind" / "predictions.jsonl").read_text().splitlines()]
    assert all(line["image"].endswith(".png (greyed)") for line in blind)

    folder = embedded / "posts" / "posts"
    (tmp_path / "images").mkdir()
    for picture in (folder / "images").iterdir():
        Image.new("RGB", upright_size(picture), (127, 127, 127)).save(tmp_path / "images" / picture.name)
    root = ["--data.init_args.posts.init_args.image_root", str(tmp_path / "images")]
    assert main(["test", *ALONE, *root, *common]) == 0
    grey = [json.loads(line) for line in (embedded / "blind" / "predictions-test.jsonl").read_text().splitlines()]
    assert [line["probabilities"] for line in grey] == [line["probabilities"] for line in blind]
    assert main(["test", *ALONE, *common]) == 0
    seeing = [json.loads(line) for line in (embedded / "blind" / "predictions-test.jsonl").read_text().splitlines()]
    assert [line["probabilities"] for line in seeing] != [line["probabilities"] for line in blind]


def test_tokens_of_a_conversion_are_not_used(embedded: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, model = embedded / "posts" / "posts", str(embedded / "models" / "student")
    files = json.dumps({split: str(folder / f"{split}.jsonl") for split in ("train", "val", "test")})
    given = ["--posts", "Table", "--posts.files", files, "--posts.image_root", str(folder / "images")]
    assert main(["data", "convert", *given, "--out", str(tmp_path / "out"), "--model", model]) == 0
    posts = json.dumps({"class_path": "Converted", "init_args": {"folder": str(tmp_path / "out")}})
    common = [*ALONE, "--data.init_args.posts", posts, "--run_dir", str(embedded), "--trainer.max_epochs", "1", *QUICK]
    common += FEW
    caplog.set_level(logging.WARNING, logger="data_modules.source")
    assert main(["fit", *common, "--stage", "with_text"]) == 0
    assert "tokenised again" not in caplog.text
    assert main(["fit", *common, "--stage", "textless", "--data.init_args.leave_out", "text"]) == 0
    assert f"the tokens in {tmp_path / 'out'} are those of posts with their text; the posts are" in caplog.text
    plain = ["fit", *ALONE, "--run_dir", str(embedded), "--trainer.max_epochs", "1", *QUICK, *FEW]
    assert main([*plain, "--stage", "textless_table", "--data.init_args.leave_out", "text"]) == 0
    one, other = (embedded / stage / "predictions.jsonl" for stage in ("textless", "textless_table"))
    answers = [[json.loads(line)["probabilities"] for line in path.read_text().splitlines()] for path in (one, other)]
    assert answers[0] == answers[1]
    assert len({json.loads(line)["text"] for line in one.read_text().splitlines()}) == 1
