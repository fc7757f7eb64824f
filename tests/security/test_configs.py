"""Wrong configurations: refused in one line with file, line and what would be right, before a model is loaded."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mulcot.cli import main
from mulcot.config_files import read_yaml
from mulcot.ranges import Count, Share, check_number
from mulcot.types import InputError

MODEL, DATA = "model: {init_args: {@}}", "data: {init_args: {@}}"
OPTIMIZER = MODEL.replace("@", "optimizer: {@}")
LORA = MODEL.replace("@", "lora: {@}")
READER = "reader: {class_path: TwitterJson, init_args: {path: a.json, image_root: .}}"
SPLIT = DATA.replace("@", f"posts: {{class_path: GroupedSplit, init_args: {{{READER}, @}}}}")
TEACHER = MODEL.replace(
    "@", "teacher: {class_path: mulcot.teachers.RecordedTeacher, init_args: {path: replies.jsonl, name: b}}, @"
)


def loss(name: str, argument: str) -> str:
    return f"losses: {{kl: {{class_path: {name}, init_args: {{{argument}}}}}}}"


def each(form: str, cases: dict[str, str]) -> dict[str, str]:
    return {form.replace("@", argument): words for argument, words in cases.items()}


AT_LEAST_1 = "it must be 1 or more"
AT_LEAST_0 = "it must be 0 or more"
FIT = (
    each(OPTIMIZER, {
        "learning_rate: 0": "learning_rate of Optimizer is 0.0; it must be above 0",
        "learning_rate: -1.0": "it must be above 0",
        "learning_rate: .nan": "learning_rate of Optimizer is nan; it must be a finite number",
        "learning_rate: .inf": "it must be a finite number",
        "learning_rate: fast": "learning_rate is 'fast'; it must be a number",
        "learning_rat: 1": "unknown key 'learning_rat' of Optimizer; did you mean learning_rate",
        "weight_decay: -1": AT_LEAST_0,
        "betas: [1.0, 0.9]": "betas[0] of Optimizer is 1.0; it must be below 1",
        "betas: [0.9]": "tuple with 2 elements",
        "warmup: 1.5": "warmup of Optimizer is 1.5; it must be 1 or less",
        "plateau_factor: 1.0": "it must be below 1",
        "plateau_patience: -1": AT_LEAST_0,
        "schedule: cosin": "it must be one of 'constant', 'cosine', 'plateau'; did you mean cosine",
    })
    | each(LORA, {
        "r: 0": "r of Lora is 0; it must be 1 or more",
        "alpha: 0": "alpha of Lora is 0; it must be 1 or more",
        "dropout: 1.0": "dropout of Lora is 1.0; it must be below 1",
        "targets: []": "targets of Lora is []; it must be a list of 1 or more",
        "rank: 4": "unknown key 'rank' of Lora",
    })
    | each(MODEL, {
        "lambda_soft: 1.5": "it must be 1 or less",
        "lambda_soft: -1": AT_LEAST_0,
        "lambda_soft: much": "lambda_soft is 'much'; it must be a number or a schedule",
        "lambda_soft: {shape: linear, start: 0, end: 2}": "lambda_soft.end: 2.0 is not possible",
        "max_new_tokens: 0": AT_LEAST_1,
        "image_size: [0, 5]": "image_size[0] of StudentStage is 0; it must be 1 or more",
        "image_size: [280, 1000000]": "image_size[1] of StudentStage is 1000000; it must be 7000 or less",
        "task_weights: {reasoning: -1}": AT_LEAST_0,
        "task_weights: {resoning: 1}": "it must be 'reasoning' or 'classification'",
        "labels: [a]": "labels of StudentStage is ['a']; it must be a list of 2 or more",
        "dtype: float8": "it must be one of 'float32', 'bfloat16'",
        "attention: 5": "attention is '5'; it must be text",
        "lambda_soft: 0.1, lambda_soft: 0.2": "the key lambda_soft stands twice",
    })
    | each(DATA, {
        "posts_per_step: 0": "posts_per_step of MultimodalDataModule is 0; it must be 1 or more",
        "posts_per_step: 1.5": "it must be a whole number",
        "posts_per_step: true": "it must be a whole number",
        "eval_batch_size: -1": AT_LEAST_1,
        "row_tokens: 0": AT_LEAST_1,
        "length_pool: 0": AT_LEAST_1,
        "rationales_per_post: 0": AT_LEAST_1,
        "max_tokens: 0": AT_LEAST_1,
        "eval_max_tokens: 0": AT_LEAST_1,
        "limit: 0": AT_LEAST_1,
        "num_workers: -1": AT_LEAST_0,
        "picture_cache_mb: -1": AT_LEAST_0,
        "layout: sharde": "it must be one of 'shared', 'paired'; did you mean shared",
        "on_bad_row: ignore": "it must be one of 'error', 'skip'",
    })
    | {
        loss("ForwardKL", "temperature: -1"): "temperature of ForwardKL is -1.0; it must be above 0",
        loss("ForwardKL", "temperature: 0"): "it must be above 0",
        loss("ForwardKL", "weight: -1"): AT_LEAST_0,
        loss("ForwardKL", "weight: .nan"): "it must be a finite number",
        loss("GeneralizedJSD", "beta: 1"): "beta of a GeneralizedJSD is 1.0; it must be between 0 and 1",
        loss("SkewedKL", "alpha: 1"): "alpha of SkewedKL is 1.0; it must be below 1",
        loss("UniversalLogit", "top: 0"): AT_LEAST_1,
        loss("HiddenMSE", "layers: 0"): AT_LEAST_1,
        loss("ForwardKL", "tasks: [reasning]"): "did you mean reasoning",
        loss("ForwardKL", "temprature: 1"): "did you mean temperature",
    }
    | each(SPLIT, {
        "train: 1.0, val: 0.5": "1.0 + 0.5 is more than 1: shares add up to 1",
        "train: 1.0, val: 1.0": "shares add up to 1",
        "train: 0, val: 0": "train of GroupedSplit is 0; it must be a count or a share above 0",
        "train: -1, val: 1": "train of GroupedSplit is -1",
        "train: 0.8, val: -0.1": "val of GroupedSplit is -0.1",
        "train: 0.8, val: 0.1, near_copies: 2": "near_copies of GroupedSplit is 2.0; it must be 1 or less",
    })
    | each("trainer: {@}", {
        "max_epochs: 0": "trainer.max_epochs is 0; it must be 1 or more",
        "max_epochs: -2": AT_LEAST_1,
        "max_steps: -5": AT_LEAST_1,
        "accumulate_grad_batches: 0": "trainer.accumulate_grad_batches is 0; it must be 1 or more",
        "gradient_clip_val: -1": AT_LEAST_0,
        "devices: 0": AT_LEAST_1,
        "devices: -3": AT_LEAST_1,
        "num_nodes: 0": AT_LEAST_1,
        "precision: 17": "trainer.precision is '17'",
        "log_every_n_steps: -1": AT_LEAST_0,
        "limit_train_batches: 2.0": "trainer.limit_train_batches is 2.0; it must be",
        "overfit_batches: 2.0": "trainer.overfit_batches is 2.0; it must be",
        "val_check_interval: 0": "trainer.val_check_interval is 0",
        "check_val_every_n_epoch: 0": AT_LEAST_1,
        "num_sanity_val_steps: -2": AT_LEAST_0,
        "fast_dev_run: -1": "It should be >= 0",
        "accelerator: quantum": "invalid accelerator name",
        "strategy: dddp": "invalid strategy name",
        "max_epoch: 3": "did you mean max_epochs",
    })
    | {
        "seed_everything: -1": "seed_everything is -1; it must be 0 or more",
        "seed_everything: 4294967296": "it must be below 4294967296",
        "seed_everything: 1.5": "a whole number",
        "inspection: {rationales: -1}": AT_LEAST_0,
        "held_out: {enabled: maybe}": "true or false",
        "model: 5": "it must be a class",
        "model: {class_path: os.system}": "model",
        "model: {class_path: StudntStage}": "did you mean StudentStage",
    }
)  # fmt: skip
PREDICT = each(MODEL, {
    "temperature: -1": "temperature of AssistantStage is -1.0; it must be above 0",
    "temperature: 0": "it must be above 0",
    "samples_per_post: 0": AT_LEAST_1,
    "sampling_seed: -1": AT_LEAST_0,
    "soft_label_k: 0": AT_LEAST_1,
    "soft_label_draws: 0": AT_LEAST_1,
    "soft_label_temperature: 0": "it must be above 0",
    "predicts: nothing": "it must be one of 'rationales', 'soft_labels'",
    "engine: vlm": "did you mean vllm",
})  # fmt: skip
TEACHER_CASES = each(TEACHER, {
    "max_reasks: -1": AT_LEAST_0,
    "concurrency: 0": AT_LEAST_1,
    "rationales_per_post: 0": AT_LEAST_1,
    "max_requests: -1": AT_LEAST_0,
    "max_usd: -1": AT_LEAST_0,
    "filters: [{class_path: os.system}]": "filters",
})  # fmt: skip


def error_of(capsys: pytest.CaptureFixture[str], verb: str, config: str, text: str, folder: Path) -> str:
    overlay = folder / "mine.yaml"
    overlay.write_text(f"# mine\n{text}\n")
    given = [verb, "--config", config, "--config", str(overlay), "--run_dir", str(folder / "run")]
    code = main(given)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mulcot: error: ")]
    assert (code, len(errors)) == (1, 1), errors  # 2 would be the model, which is not there
    assert f"{overlay} line 2: " in errors[0] or f"{overlay}:2: " in errors[0]
    assert not (folder / "run").exists()
    return errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("text", FIT)
def test_a_wrong_value_of_a_fit(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert FIT[text] in error_of(capsys, "fit", "student.yaml", text, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("text", TEACHER_CASES)
def test_a_wrong_value_of_a_teacher(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "replies.jsonl").write_text('{"id": "1", "cot": "fine"}\n')
    assert TEACHER_CASES[text] in error_of(capsys, "predict", "teacher.yaml", text, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("text", PREDICT)
def test_a_wrong_value_of_a_prediction(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert PREDICT[text] in error_of(capsys, "predict", "augment.yaml", text, tmp_path)


NAMED = [
    OPTIMIZER.replace("@", "learning_rate: 0"),
    DATA.replace("@", "posts_per_step: 0"),
    loss("ForwardKL", "temperature: -1"),
    SPLIT.replace("@", "train: 1.0, val: 1.0"),
    MODEL.replace("@", "lambda_soft: 0.1, lambda_soft: 0.2"),
    "trainer: {max_epoch: 3}",
]


@pytest.mark.parametrize("text", NAMED)
def test_the_usual_mistakes(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few of the table, which as a whole takes a minute."""
    assert FIT[text] in error_of(capsys, "fit", "student.yaml", text, tmp_path)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghi")
)
HOSTILE = {
    "!!python/object/apply:os.system [id]": "could not determine a constructor",
    "a: !!python/name:os.system": "could not determine a constructor",
    "a: !!python/object/new:subprocess.Popen [[id]]": "could not determine a constructor",
    "a: 1\na: 2": "the key a stands twice",
    "{": "not YAML",
    "- 1": "a configuration is a mapping",
    "? [1, 2]\n: 3": "not YAML",
    "a: " + "[" * 100_000: "not YAML",
    "a: " + "{a: " * 100_000: "not YAML",
    LAUGHS: "aliases",
}


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:20].replace("\n", " "))
def test_hostile_yaml_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text + "\n")
    with pytest.raises(InputError, match=r"mine\.yaml") as caught:
        read_yaml(path)
    assert HOSTILE[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_range_is_checked_by() -> None:
    check_number("a", Count | None, None)
    check_number("a", Share, 1)
    with pytest.raises(InputError, match=r"^a of B is 2; it must be 1 or less$"):
        check_number("a", Share, 2, " of B")
    with pytest.raises(InputError, match=r"^a\[1\] is 0; it must be 1 or more$"):
        check_number("a", list[Count], [1, 0])


def test_a_wrong_flag_is_not_blamed_on_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "student.yaml", "--data.init_args.posts_per_step", "0"]) == 1
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    flag, told = "--data.init_args.posts_per_step", "posts_per_step of MultimodalDataModule is 0; it must be 1 or more"
    assert shown == f"mulcot: error: {flag}: {told}"


def posts(written: str) -> str:
    return f"data: {{init_args: {{posts: {written}}}}}"


def mvsa(folder: str) -> str:
    return posts(f"{{class_path: Mvsa, init_args: {{folder: '{folder}'}}}}")


SOURCES: dict[str | bytes, str] = {
    **HOSTILE,
    b"\xff\xfe\x00\x01": "not YAML",
    "data:\n\tinit_args: 1": "mine.yaml:2: not YAML",
    "data: 5": "names no source of posts",
    "data: [1]": "is not an int",
    "data: {init_args: [1]}": "is not an int",
    posts("5"): "posts is '5'; it must be a class",
    posts("[1]"): "posts is '[1]'; it must be a class",
    posts("'${oc.env:PATH}'"): "it must be a class",
    posts("'${nothing.like:X}'"): "nothing.like",
    posts("'${'"): "no viable alternative",
    posts("'${data}'"): "--config",
    mvsa("${oc.env:NOT_THERE}"): "NOT_THERE",
    mvsa("${data_root}"): "give --data_root or --run_dir",
    mvsa("${"): "--config",
    "a: " + "[" * 200 + "]" * 200: "nested beyond reason",
}


@pytest.mark.parametrize("text", SOURCES, ids=lambda text: repr(text[:28]))
@pytest.mark.parametrize("verb", ["check", "convert", "split"])
def test_a_hostile_config_of_a_source_is_refused(verb: str, text: str | bytes, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else f"{text}\n".encode())
    assert main(["data", verb, "--config", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "mine.yaml" in line
    assert SOURCES[text] in line
    assert len(line) < 1000
