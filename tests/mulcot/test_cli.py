"""What a person meets at the command line: help, overlays, losses by name, and mistakes in one line."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from mulcot.cli import VERBS, main
from mulcot.interruptions import Interruptions
from mulcot.lightning_cli import MulcotCLI

CHECKOUT = Path(__file__).resolve().parents[2]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"]
STAGES = ["teacher", "assistant", "augment", "soft_labels", "student"]


class Parsed(MulcotCLI):
    """The parsed configuration without running anything."""

    def instantiate_classes(self) -> None:
        self.config_init = self.config

    def before_instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def parse(*args: str) -> dict:
    cli = Parsed(args, Interruptions(), ExitStack())
    return yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))[args[0]]


def leaves(value: object) -> list[str]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [str(value)]


def error_of(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    code = main([str(arg) for arg in args])
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("mulcot: error: ")]
    assert len(errors) == 1, lines
    assert not any("Traceback" in line for line in lines)
    return code, errors[0]


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_config_is_complete_and_resolves(stage: str) -> None:
    verb = "fit" if stage in ("assistant", "student") else "predict"
    config = parse(verb, "--config", f"{stage}.yaml", "--run_dir", "elsewhere")
    assert config["stage_dir"] == f"elsewhere/{stage}"
    assert not [leaf for leaf in leaves(config) if "${" in leaf]


OVERLAYS = sorted(path for folder in ("data", "losses", "models", "trainer", "debug", "experiment")
                  for path in (CHECKOUT / "conf" / folder).glob("*.yaml"))  # fmt: skip


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_fits_a_stage(overlay: Path) -> None:
    base = ("predict", "--config", "teacher.yaml") if "teacher" in overlay.stem else ("fit", "--config", "student.yaml")
    config = parse(*base, "--config", str(overlay), "--data_root", "elsewhere")
    assert not [leaf for leaf in leaves(config) if "${" in leaf]


def test_an_override_reaches_every_place_that_refers_to_it() -> None:
    config = parse("fit", "--config", "student.yaml", "--run_dir", "r", "--stage", "s")
    assert config["stage_dir"] == "r/s"
    assert config["model"]["init_args"]["stage_dir"] == "r/s"
    assert config["trainer"]["logger"]["init_args"]["save_dir"] == "r/s"
    assert config["data"]["init_args"]["rationales"][0] == "r/teacher/rationales-train.jsonl"


@pytest.fixture
def other_loss(tmp_path: Path) -> Path:
    overlay = tmp_path / "other.yaml"
    overlay.write_text("losses: {kl: {class_path: CrossEntropy, init_args: {weight: 0.5}}}\n")
    return overlay


def test_an_overlay_replaces_one_loss_whole_and_leaves_the_others(other_loss: Path) -> None:
    losses = parse("fit", "--config", "student.yaml", "--config", str(other_loss))["losses"]
    assert losses["ce"]["class_path"] == "mulcot.callbacks.CrossEntropy"
    assert losses["kl"]["class_path"] == "mulcot.callbacks.CrossEntropy"
    assert losses["kl"]["init_args"] == {"weight": 0.5, "tasks": ["reasoning", "classification"]}


def test_a_flag_replaces_one_loss_whole() -> None:
    given = '{"class_path": "CrossEntropy", "init_args": {"weight": 0.5}}'
    losses = parse("fit", "--config", "student.yaml", "--losses.kl", given)["losses"]
    assert "temperature" not in losses["kl"]["init_args"]
    assert losses["kl"]["init_args"]["weight"] == 0.5


def test_a_flag_changes_one_parameter_of_a_loss() -> None:
    losses = parse("fit", "--config", "student.yaml", "--losses.kl.init_args.temperature", "4")["losses"]
    assert losses["kl"]["class_path"] == "mulcot.callbacks.ForwardKL"
    assert losses["kl"]["init_args"]["temperature"] == 4.0


def test_null_removes_a_loss_by_flag_and_by_overlay(tmp_path: Path) -> None:
    overlay = tmp_path / "none.yaml"
    overlay.write_text("losses: {kl: null}\n")
    for extra in (["--losses.kl=null"], ["--config", str(overlay)]):
        losses = parse("fit", "--config", "student.yaml", *extra)["losses"]
        assert losses["kl"] is None
        assert losses["ce"] is not None


COSINE = {"shape": "cosine", "start": 4.0, "end": 1.0, "share": 0.5}
WARMUP = {"shape": "warmup", "end": 2.0}


def test_a_schedule_replaces_an_earlier_one_whole(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(
        f"model: {{init_args: {{lambda_soft: {{shape: linear, start: 0, end: 1}}}}}}\n"
        f"losses: {{kl: {{class_path: ForwardKL, init_args: {{temperature: {json.dumps(COSINE)}}}}}}}\n"
    )
    second.write_text("model: {init_args: {lambda_soft: {shape: warmup, end: 0.5}}}\n")
    before = parse("fit", "--config", "student.yaml", "--config", str(first))
    assert before["losses"]["kl"]["init_args"]["temperature"] == COSINE
    assert before["model"]["init_args"]["lambda_soft"]["start"] == 0
    by_file = parse("fit", "--config", "student.yaml", "--config", str(first), "--config", str(second))
    assert by_file["model"]["init_args"]["lambda_soft"] == {"shape": "warmup", "end": 0.5, "start": None, "share": None}
    for flag in (["--losses.kl.init_args.temperature", json.dumps(WARMUP)],
                 [f"--losses.kl.init_args.temperature={json.dumps(WARMUP)}"]):  # fmt: skip
        by_flag = parse("fit", "--config", "student.yaml", "--config", str(first), *flag)
        kept = by_flag["losses"]["kl"]["init_args"]["temperature"]
        assert kept == WARMUP | {"start": None, "share": None}
    number = parse("fit", "--config", "student.yaml", "--config", str(first), "--model.init_args.lambda_soft", "0.3")
    assert number["model"]["init_args"]["lambda_soft"] == 0.3


def test_an_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = error_of(capsys, "trian")
    assert code == 2
    assert "'trian'" in line
    assert "fit" in line


def test_an_unknown_config_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = error_of(capsys, "fit", "--config", "studnet.yaml")
    assert code == 1
    assert "studnet.yaml" in line
    assert "student.yaml" in line


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("sedd_everything: 3\n", "sedd_everything", "seed_everything"),
        ("trainer: {max_epoch: 3}\n", "max_epoch", "max_epochs"),
        ("model: {init_args: {lamda_soft: 0.5}}\n", "lamda_soft", "lambda_soft"),
        ("data: {init_args: {post_per_step: 2}}\n", "post_per_step", "posts_per_step"),
        ("losses: {kl: {class_path: ForwardKL, init_args: {temprature: 2}}}\n", "temprature", "temperature"),
    ],
)
def test_an_unknown_key_is_named_with_file_line_and_nearest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, key: str, nearest: str
) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("# mine\n" + text)
    code, line = error_of(capsys, "fit", "--config", "student.yaml", "--config", overlay)
    assert code == 1
    assert f"{overlay} line 2" in line
    assert key in line
    assert f"did you mean {nearest}" in line


def test_a_wrong_type_is_named_with_file_and_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("# mine\ndata:\n  init_args:\n    posts_per_step: many\n")
    code, line = error_of(capsys, "fit", "--config", "student.yaml", "--config", overlay)
    assert code == 1
    assert f"{overlay} line 4" in line
    assert "posts_per_step is 'many'; it must be a whole number" in line


def test_an_unknown_class_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("# mine\nmodel: {class_path: StudntStage}\n")
    code, line = error_of(capsys, "fit", "--config", "student.yaml", "--config", overlay)
    assert code == 1
    assert f"{overlay} line 2" in line
    assert "did you mean StudentStage" in line


@pytest.mark.parametrize(
    ("text", "name", "lacks"),
    [
        ("data: {init_args: {posts: {class_path: Mvsa}}}\n", "Mvsa", "folder"),
        ("data: {init_args: {posts: {class_path: Table}}}\n", "Table", "files and image_root"),
        ("data: {init_args: {posts: {class_path: GroupedSplit, init_args: {train: 3, val: 1, reader: {class_path: Mvsa}"
         "}}}}\n", "Mvsa", "folder"),
    ],
)  # fmt: skip
def test_what_a_class_lacks_is_named_with_file_and_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, name: str, lacks: str
) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("# mine\n" + text)
    code, line = error_of(capsys, "fit", "--config", "student.yaml", "--config", overlay)
    assert code == 1
    assert line == f"mulcot: error: {overlay} line 2: {name} needs {lacks}; add it to its init_args"


def test_a_finished_stage_is_refused_and_fresh_starts_anew(
    capsys: pytest.CaptureFixture[str], embedded: Path, tmp_path: Path
) -> None:
    before = (embedded / "teacher" / "manifest.json").read_bytes()
    code, line = error_of(capsys, "predict", "--config", "teacher.yaml", "--run_dir", embedded)
    assert code == 1
    assert "--fresh" in line
    assert (embedded / "teacher" / "manifest.json").read_bytes() == before


def test_fresh_keeps_what_the_teacher_was_paid_for(embedded: Path) -> None:
    given = ["predict", "--config", "teacher.yaml", "--run_dir", str(embedded), "--stage", "paid_for"]
    given += ["--trainer.enable_progress_bar", "false"]
    folder = embedded / "paid_for"
    assert main(given) == 0
    first = (folder / "rationales-train.jsonl").read_bytes()
    assert json.loads((folder / "metrics.json").read_text())["splits"]["train"]["requests"] > 0
    assert main([*given, "--fresh"]) == 0
    counts = json.loads((folder / "metrics.json").read_text())["splits"]["train"]
    assert counts["requests"] == 0
    assert counts["replayed"] > 0
    assert (folder / "rationales-train.jsonl").read_bytes() == first


def test_each_verb_saves_its_own_config(chain: Path) -> None:
    assert (chain / "student" / "config-fit.yaml").is_file()
    assert (chain / "augment" / "config-predict.yaml").is_file()
    saved = yaml.safe_load((chain / "student" / "config-fit.yaml").read_text())
    assert saved["model"]["init_args"]["lambda_soft"] == 0.3
    assert main(["test", "--config", "student.yaml", "--run_dir", str(chain), *QUIET,
                 "--model.init_args.max_new_tokens", "24"]) == 0  # fmt: skip
    assert yaml.safe_load((chain / "student" / "config-fit.yaml").read_text()) == saved


def test_a_test_of_its_own_gives_the_numbers_of_the_fit(chain: Path) -> None:
    assert main(["test", "--config", "student.yaml", "--run_dir", str(chain), *QUIET,
                 "--model.init_args.max_new_tokens", "24"]) == 0  # fmt: skip
    after_fit = json.loads((chain / "student" / "metrics.json").read_text())["test"]
    assert json.loads((chain / "student" / "metrics-test.json").read_text()) == after_fit


def edited_posts(chain: Path, folder: Path, **changes: object) -> Path:
    """A copy of the generated posts with the third training row changed."""
    source = chain / "posts" / "posts"
    folder.mkdir()
    (folder / "images").symlink_to(source / "images")
    for split in ("train", "val", "test"):
        rows = [json.loads(line) for line in (source / f"{split}.jsonl").read_text().splitlines()]
        if split == "train":
            rows[2] = {key: value for key, value in {**rows[2], **changes}.items() if value is not None}
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def files_of(folder: Path) -> str:
    return json.dumps({split: str(folder / f"{split}.jsonl") for split in ("train", "val", "test")})


@pytest.mark.parametrize(
    ("changes", "field", "remedy"),
    [
        ({"image": "nowhere.png"}, "image", "nowhere.png"),
        ({"text": None}, "text", "text"),
        ({"label": "happy"}, "label", "positive"),
    ],
)
def test_a_bad_row_is_named_with_file_row_field_and_remedy(
    capsys: pytest.CaptureFixture[str], chain: Path, tmp_path: Path, changes: dict, field: str, remedy: str
) -> None:
    folder = edited_posts(chain, tmp_path / "posts", **changes)
    code, line = error_of(
        *(capsys, "fit", "--config", "student.yaml", "--run_dir", chain, "--stage", f"bad_{field}"),
        *("--data.init_args.posts.init_args.files", files_of(folder), *QUIET),
        *("--data.init_args.posts.init_args.image_root", folder / "images"),
    )
    assert code == 1
    assert "train.jsonl" in line
    assert "3" in line
    assert field in line
    assert remedy in line


@pytest.mark.parametrize("is_picture", [False, True])
def test_a_broken_picture_is_named_in_one_line_with_its_row_from_a_worker_process_too(
    capsys: pytest.CaptureFixture[str], chain: Path, tmp_path: Path, is_picture: bool
) -> None:
    """What is no picture is found before the first step, one that breaks off when it is decoded."""
    folder = edited_posts(chain, tmp_path / "posts", image="broken.png")
    images = tmp_path / "images"
    shutil.copytree(chain / "posts" / "posts" / "images", images)
    content = next(images.iterdir()).read_bytes()
    (images / "broken.png").write_bytes(content[:-200] if is_picture else b"this is no picture")
    code, line = error_of(
        *(capsys, "fit", "--config", "student.yaml", "--run_dir", chain, "--stage", "broken_picture"),
        *("--data.init_args.posts.init_args.files", files_of(folder), "--data.init_args.num_workers", 1, *QUIET),
        *("--data.init_args.posts.init_args.image_root", images),
    )
    assert code == 1
    post_id = json.loads((folder / "train.jsonl").read_text().splitlines()[2])["id"]
    place = f"{folder / 'train.jsonl'}, line 3, field 'image' (post '{post_id}')"
    assert line.startswith(f"mulcot: error: {place}: {images / 'broken.png'}: ")


def test_a_micro_batch_over_the_limit_names_the_accumulation_that_fits(
    capsys: pytest.CaptureFixture[str], chain: Path
) -> None:
    code, line = error_of(
        *(capsys, "fit", "--config", "student.yaml", "--run_dir", chain, "--stage", "too_large"),
        *("--data.init_args.max_tokens", "900", *QUIET),
    )
    assert code == 1
    assert "trainer.accumulate_grad_batches" in line


def test_soft_labels_of_another_assistant_are_refused(capsys: pytest.CaptureFixture[str], chain: Path) -> None:
    code, line = error_of(
        *(capsys, "fit", "--config", "student.yaml", "--run_dir", chain, "--stage", "other_assistant"),
        *("--model.init_args.assistant", chain / "student", *QUIET),
    )
    assert code == 1
    assert "assistant" in line
    assert "soft_labels" in line


def test_infer_answers_one_post(capsys: pytest.CaptureFixture[str], chain: Path) -> None:
    picture = sorted((chain / "posts" / "posts" / "images").glob("test-*.png"))[0]
    asked = ["--image", str(picture), "--text", "Maple Cafe is fine", "--aspect", "Maple Cafe"]
    assert (
        main(["infer", "--model", str(chain / "student"), *asked, "--max_new_tokens", "24", "--as_json", "true"]) == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert sum(answer["probabilities"].values()) == pytest.approx(1.0)
    assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)


def test_infer_names_a_missing_picture(capsys: pytest.CaptureFixture[str], chain: Path) -> None:
    code, line = error_of(capsys, "infer", "--model", chain / "student", "--image", "none.png", "--text", "a")
    assert code == 1
    assert "none.png" in line


def test_a_later_file_replaces_the_source_of_posts_whole(tmp_path: Path) -> None:
    overlay = tmp_path / "posts.yaml"
    overlay.write_text("data: {init_args: {posts: {class_path: HuggingFace, init_args: {path: some/set}}}}\n")
    posts = parse("fit", "--config", "student.yaml", "--config", str(overlay))["data"]["init_args"]["posts"]
    assert posts["class_path"].endswith("HuggingFace")
    assert posts["init_args"]["image_root"] is None, "the earlier source's image_root must not be taken over"
