"""What `fit`, `predict` and `test` do around a stage: mistakes in one line, `--fresh`, and what is left behind."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from mulcot.chain import main_run
from mulcot.cli import main
from mulcot.manifests import command_key, staleness
from mulcot.stage_folder import StageFolder, check_stage_name
from mulcot.types import InputError

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"]
SHORT = ["--model.init_args.max_new_tokens", "24", "--trainer.max_epochs", "1"]


def error_of(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    code = main([str(arg) for arg in args])
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("mulcot: error: ")]
    assert len(errors) == 1, lines
    assert not any("Traceback" in line for line in lines)
    return code, errors[0]


@pytest.mark.parametrize(
    ("verb", "stage", "missing"),
    [
        ("predict", "teacher", "posts/posts/facts.jsonl"),
        ("fit", "assistant", "models/assistant"),
        ("predict", "augment", "assistant"),
        ("predict", "soft_labels", "assistant"),
        ("fit", "student", "models/student"),
    ],
)
def test_every_stage_names_what_it_lacks_and_leaves_with_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    stage: str,
    missing: str,
) -> None:
    """A run that is not there: spelt as an absolute path, and as two parts, which might be a name on the hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for run in (tmp_path / "none", Path("runs")):
        code, line = error_of(capsys, verb, "--config", f"{stage}.yaml", "--run_dir", run, *QUIET[:2])
        assert code == 2
        assert f"{run}/{missing}" in line
        assert "`mulcot " in line


@pytest.mark.parametrize(
    ("verb", "stage", "flags", "said"),
    [
        (
            "fit",
            "student",
            ["--model.init_args.lambda_soft", "2"],
            "lambda_soft of StudentStage is 2.0; it must be 1 or less",
        ),
        ("fit", "student", ["--losses.ce.init_args.weight=-1"], "weight of CrossEntropy is -1.0; it must be 0 or more"),
        (
            "fit",
            "student",
            ["--data.init_args.posts_per_step", "0"],
            "posts_per_step of MultimodalDataModule is 0; it must be 1 or more",
        ),
        ("predict", "teacher", ["--model.init_args.teacher.init_args.error_rate", "3"], "error_rate is 3.0"),
        (
            "predict",
            "teacher",
            ["--model.init_args.concurrency", "0"],
            "concurrency of TeacherStage is 0; it must be 1 or more",
        ),
        ("fit", "student", ["--trainer.accelerator", "gpu"], "trainer: "),
        ("fit", "student", ["--trainer.precision", "17-true"], "precision"),
        ("predict", "student", [], "StudentStage predicts nothing: `mulcot predict` takes teacher.yaml"),
        ("fit", "teacher", [], "the teacher is not trained"),
        ("fit", "student", ["--data_root", "x\udcff"], "is not UTF-8"),
        ("fit", "student", ["--stage", ""], "--stage '' must be the name of a folder within the run"),
        ("fit", "student", ["--stage", "."], "--stage '.' must be the name of a folder within the run"),
        ("fit", "student", ["--stage", "../x"], "--stage '../x' must be the name of a folder within the run"),
    ],
)
def test_what_a_constructor_or_the_trainer_refuses_is_one_line(
    capsys: pytest.CaptureFixture[str], embedded: Path, verb: str, stage: str, flags: list[str], said: str
) -> None:
    if "gpu" in flags and torch.cuda.is_available():
        pytest.skip("there is a GPU here, so asking for one is no mistake")
    common = ["--run_dir", embedded] if "--stage" in flags else ["--run_dir", embedded, "--stage", "refused"]
    code, line = error_of(capsys, verb, "--config", f"{stage}.yaml", *common, *QUIET[:2], *flags)
    assert code == 1
    assert said in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {init_args: [\n", "mine.yaml:2: not YAML"),
        ("- a\n- b\n", "mine.yaml: a configuration is a mapping"),
        ("trainer: {max_epochs: 1}\ntrainer: {max_epochs: 2}\n", "mine.yaml:2: not YAML: the key trainer stands twice"),
        ("losses: {kl: {init_args: {weight: 2}}}\n", "mine.yaml: losses.kl has no class_path"),
    ],
)
def test_a_file_of_the_wrong_form_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    code, line = error_of(capsys, "fit", "--config", "student.yaml", "--config", tmp_path / "mine.yaml")
    assert code == 1
    assert said in line


def test_fresh_touches_nothing_before_everything_was_looked_at(
    capsys: pytest.CaptureFixture[str], chain: Path, tmp_path: Path
) -> None:
    shutil.copytree(chain / "student", tmp_path / "run" / "victim")
    for name in ("posts", "models", "assistant", "teacher", "augment", "soft_labels"):
        (tmp_path / "run" / name).symlink_to(chain / name)
    before = sorted(path for path in (tmp_path / "run" / "victim").rglob("*"))
    given = ["fit", "--config", "student.yaml", "--run_dir", tmp_path / "run", "--stage", "victim", "--fresh", *QUIET]
    for flags in (
        ["--model.init_args.pretrained", tmp_path / "run" / "studnt"],
        ["--data.init_args.posts.init_args.files", json.dumps({"train": str(tmp_path / "none.jsonl")})],
        ["--data.init_args.rationales", json.dumps([str(tmp_path / "none.jsonl")])],
    ):
        code, _ = error_of(capsys, *given, *flags)
        assert code in (1, 2)
        assert sorted(path for path in (tmp_path / "run" / "victim").rglob("*")) == before


def test_fresh_empties_no_folder_that_is_not_a_stage_s(tmp_path: Path) -> None:
    (tmp_path / "run" / "keep").mkdir(parents=True)
    (tmp_path / "run" / "keep" / "precious").write_text("mine")
    with pytest.raises(InputError, match=r"run holds 'keep' and is no stage's folder, so --fresh does not empty it"):
        StageFolder(tmp_path / "run").begin("key", fresh=True)
    assert (tmp_path / "run" / "keep" / "precious").read_text() == "mine"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp"])
def test_a_stage_is_a_folder_within_its_run(name: str) -> None:
    with pytest.raises(InputError, match="must be the name of a folder within the run"):
        check_stage_name(name)


def test_a_fast_run_leaves_nothing_behind(embedded: Path) -> None:
    before = sorted(embedded.rglob("*"))
    common = ["--run_dir", str(embedded), "--config", "debug/fast_dev_run.yaml", *QUIET[:4]]
    assert main(["predict", "--config", "teacher.yaml", "--stage", "fast", *common]) == 0
    assert main(["fit", "--config", "student.yaml", "--config", "experiment/labels_only.yaml", "--stage", "fast",
                 *common]) == 0  # fmt: skip
    assert sorted(embedded.rglob("*")) == before


def test_a_limit_works_on_a_stage_of_a_finished_run(chain: Path, tmp_path: Path) -> None:
    limit = ["--config", "debug/limit.yaml", "--data.init_args.limit", "5", *QUIET, *SHORT]
    assert main(["fit", "--config", "student.yaml", "--run_dir", str(chain), "--stage", "limited", *limit]) == 0
    metrics = json.loads((chain / "limited" / "metrics.json").read_text())
    assert metrics["test"]["classification"]["posts"] == 5
    assert metrics["test"]["reasoning"]["references"] == 5
    assert sum(metrics["train_label_counts"].values()) == 5


def test_the_verb_test_leaves_a_finished_stage_as_it_was(chain: Path) -> None:
    common = ["--config", "student.yaml", "--run_dir", str(chain), "--stage", "tested", *QUIET]
    fit = ["fit", *common, *SHORT]
    assert main(fit) == 0
    answers = (chain / "tested" / "predictions.jsonl").read_bytes()
    assert staleness(chain / "tested", command_key(fit)) is None
    assert main(["test", *common, "--model.init_args.max_new_tokens", "3"]) == 0
    assert staleness(chain / "tested", command_key(fit)) is None
    assert (chain / "tested" / "predictions.jsonl").read_bytes() == answers
    lines = (chain / "tested" / "predictions-test.jsonl").read_text().splitlines()
    replies = [json.loads(line)["reply"] for line in lines]
    assert max(map(len, replies)) < max(len(json.loads(line)["reply"]) for line in answers.splitlines())


def test_weights_in_bf16_are_refused_for_training_alone(capsys: pytest.CaptureFixture[str], chain: Path) -> None:
    common = ["--run_dir", chain, "--stage", "half", "--model.init_args.dtype", "bfloat16", *QUIET[:4]]
    code, line = error_of(capsys, "fit", "--config", "student.yaml", *common)
    assert code == 1
    assert "would train bf16 weights" in line
    assert main(["predict", "--config", "soft_labels.yaml", *map(str, common), "--fresh"]) == 0
    assert json.loads((chain / "half" / "metrics.json").read_text())["tokens"] > 0


def test_wrong_rows_are_listed_when_they_leave_nothing_to_train_on(
    capsys: pytest.CaptureFixture[str], embedded: Path, tmp_path: Path
) -> None:
    folder = embedded / "posts" / "posts"
    rows = [json.loads(line) for line in (folder / "val.jsonl").read_text().splitlines()]
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row | {"label": "glad"}) + "\n" for row in rows))
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    files["val"] = str(tmp_path / "val.jsonl")
    code, line = error_of(
        *(capsys, "fit", "--config", "student.yaml", "--config", "experiment/labels_only.yaml"),
        *("--run_dir", embedded, "--stage", "nothing_left", "--data.init_args.on_bad_row", "skip", *QUIET),
        *("--data.init_args.posts.init_args.files", json.dumps(files)),
    )
    assert code == 1
    assert "val: no post of Table is left (12 wrong rows were left out: label 12)" in line
    listed = [json.loads(row) for row in (embedded / "nothing_left" / "bad_rows.jsonl").read_text().splitlines()]
    assert [row["line"] for row in listed] == list(range(1, 13))


def losses_of(capsys: pytest.CaptureFixture[str], *args: str) -> dict:
    """What `--print_config` shows of the losses: all that a user can see of how files and flags came together."""
    with pytest.raises(SystemExit):
        main(["fit", "--config", "student.yaml", *args, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)["losses"]


def test_a_replaced_loss_keeps_nothing_of_the_earlier_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    hot = tmp_path / "hot.yaml"
    hot.write_text("losses: {kl: {class_path: ForwardKL, init_args: {temperature: 4}}}\n")
    light = tmp_path / "light.yaml"
    light.write_text("losses: {kl: {class_path: ForwardKL, init_args: {weight: 0.5}}}\n")
    hard = tmp_path / "hard.yaml"
    hard.write_text("losses: {kl: {class_path: CrossEntropy}}\n")
    plain = {"temperature": 2.0, "scale_by_temperature": True, "weight": 1.0, "tasks": ["reasoning", "classification"]}

    def kl(*args: str) -> dict:
        losses = losses_of(capsys, *args)
        assert losses["ce"]["class_path"].endswith("CrossEntropy")
        return losses["kl"]

    assert kl("--config", str(hot))["init_args"] == plain | {"temperature": 4.0}
    assert kl("--config", str(hot), "--config", str(light))["init_args"] == plain | {"weight": 0.5}
    replaced = kl("--config", str(light), "--config", str(hard))
    assert replaced["class_path"].endswith("CrossEntropy")
    assert replaced["init_args"] == {"weight": 1.0, "tasks": ["reasoning", "classification"]}
    for flag in (["--losses.kl", "ForwardKL"], ["--losses.kl.class_path=ForwardKL"]):
        assert kl("--config", str(hot), *flag)["init_args"] == plain
    assert kl("--config", str(hot), "--losses.kl.init_args.weight=3")["init_args"] == plain | {
        "temperature": 4.0,
        "weight": 3.0,
    }


def test_the_chain_runner_and_the_verbs_share_the_way_of_reading_yaml(tmp_path: Path) -> None:
    (tmp_path / "chain.yaml").write_text("steps: {a: {verb: report}, a: {verb: report}}\n")
    with pytest.raises(InputError, match=r"chain\.yaml:1: not YAML: the key a stands twice"):
        main_run(["--config", str(tmp_path / "chain.yaml")])


@pytest.mark.parametrize("joined", [True, False])
def test_null_for_a_teachers_argument_is_null(capsys: pytest.CaptureFixture[str], joined: bool) -> None:
    flags = [f"--model.init_args.teacher.init_args.{name}" for name in ("api_key_env", "max_pixels")]
    given = [part for flag in flags for part in ([f"{flag}=null"] if joined else [flag, "null"])]
    configs = ["--config", "teacher.yaml", "--config", "teachers/openai.yaml"]
    with pytest.raises(SystemExit) as left:
        main(["predict", *configs, *given, "--model.init_args.max_requests", "7", "--print_config"])
    assert left.value.code == 0
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    teacher = model["teacher"]["init_args"]
    assert (teacher["api_key_env"], teacher["max_pixels"]) == (None, None)
    assert (teacher["model"], model["max_requests"]) == ("gpt-4o-mini", 7), "the rest stays"
