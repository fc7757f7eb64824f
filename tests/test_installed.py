"""What only a real process shows: DDP, the wheel outside the checkout, an interrupted chain, adapters."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForImageTextToText

CHECKOUT = Path(__file__).resolve().parents[1]
PROGRAM = Path(sys.executable).parent / "mulcot"
QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"]
SHORT = ["--model.init_args.max_new_tokens", "24"]

pytestmark = pytest.mark.slow


def call(*args: object, program: Path = PROGRAM, cwd: Path | None = None, code: int = 0) -> str:
    done = subprocess.run([program, *(str(arg) for arg in args)], cwd=cwd, capture_output=True, text=True, timeout=900)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def answer_of(model: Path, *asked: object) -> dict:
    command = [str(word) for word in (PROGRAM, "infer", "--model", model, *asked)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def losses(stage: Path, *prefixes: str) -> dict[str, list[float]]:
    events = EventAccumulator(str(stage / "tensorboard"))
    events.Reload()
    names = [tag for tag in events.Tags()["scalars"] if tag.startswith(prefixes or ("loss/", "val/loss/"))]
    return {name: [event.value for event in events.Scalars(name)] for name in names}


def test_two_processes_train_as_one(chain: Path) -> None:
    """The same optimizer steps on two ranks: equal losses, equal metrics, every post evaluated once."""
    configs = ["--config", "student.yaml", "--config", "experiment/held_out.yaml"]
    common = ["fit", *configs, "--run_dir", chain, "--trainer.max_epochs", 1, *QUICK, *SHORT]
    call(*common, "--stage", "one")
    call(*common, "--stage", "two", "--trainer.devices", 2, "--trainer.strategy", "ddp")
    one, two = losses(chain / "one"), losses(chain / "two")
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert two[name] == pytest.approx(values, rel=1e-3), name
    assert two["loss/total"][0] == pytest.approx(one["loss/total"][0], rel=1e-5)
    inspected = ("gradient/", "sections/", "positions/", "assistant/", "top1/")
    one, two = losses(chain / "one", *inspected), losses(chain / "two", *inspected)
    assert one.keys() == two.keys()
    assert len(one) > 30
    for name, values in one.items():
        assert two[name] == pytest.approx(values, rel=2e-2, abs=1e-3), name
        assert two[name][0] == pytest.approx(values[0], rel=1e-3), name
    posts = [
        [json.loads(line)["post_id"] for line in (chain / stage / "predictions.jsonl").read_text().splitlines()]
        for stage in ("one", "two")
    ]
    assert posts[0] == posts[1]


def test_augmentation_on_two_processes_gives_the_file_of_one(chain: Path) -> None:
    """Of soft labels see `tests/stages/test_soft_label_ranks.py`."""
    common = ["predict", "--config", "augment.yaml", "--run_dir", chain, *QUICK[:4], *SHORT]
    call(*common, "--stage", "augment-one")
    call(*common, "--stage", "augment-two", "--trainer.devices", 2, "--trainer.strategy", "ddp")
    one, two = (chain / f"augment-{count}" / "rejects-train.jsonl" for count in ("one", "two"))
    assert two.read_text() == one.read_text()


def test_the_wheel_works_outside_the_checkout(chain: Path, tmp_path: Path) -> None:
    """Built, installed into an environment of its own (which borrows the dependencies), run from another folder."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(CHECKOUT)],
        check=True,
        capture_output=True,
    )
    wheel = next((tmp_path / "dist").glob("*.whl"))
    with zipfile.ZipFile(wheel) as packed:
        modules = {
            f"mulcot/metrics/modules/{name}/{name}.py" for name in ("bleu", "distinct", "meteor", "rouge_l", "sim")
        }
        assert modules <= set(packed.namelist())  # `evaluate.load` takes them from the installed package
    home = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(home)], check=True)
    site = subprocess.run(
        [sys.executable, "-c", "import site; print(site.getsitepackages()[0])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    install = [str(home / "bin" / "pip"), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    target = next((home / "lib").glob("python*")) / "site-packages"
    (target / "borrowed.pth").write_text(site + "\n")
    where = tmp_path / "elsewhere"
    where.mkdir()
    place = subprocess.run(
        [home / "bin" / "python", "-c", "import mulcot, stages, data_modules; print(mulcot.__file__)"],
        cwd=where,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert str(home) in place
    args = ["fit", "--config", "student.yaml", "--run_dir", chain, "--stage", "from_wheel", "--trainer.max_epochs", 1]
    call(*args, *QUICK, *SHORT, program=home / "bin" / "mulcot", cwd=where)
    assert (chain / "from_wheel" / "manifest.json").is_file()
    out = where / "numbers.json"
    call("report", "--run_dir", chain, "--out", out, program=home / "bin" / "mulcot", cwd=where)
    assert "student, distilled" in (where / "report.html").read_text(encoding="utf-8")  # its templates are inside
    assert losses(chain / "from_wheel")["loss/reasoning/kl"]


def test_an_interrupted_fit_leaves_with_130_and_goes_on(chain: Path) -> None:
    args = ["fit", "--config", "student.yaml", "--run_dir", chain, "--stage", "stopped", "--trainer.max_epochs", 3]
    command = [str(word) for word in (PROGRAM, *args, *QUICK, *SHORT)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (chain / "stopped" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 130, shown
    assert "Traceback" not in shown
    assert not (chain / "stopped" / "manifest.json").exists()
    call(*args, *QUICK, *SHORT)
    assert (chain / "stopped" / "manifest.json").exists()


def write_chain(folder: Path, text: str) -> Path:
    path = folder / "chain.yaml"
    path.write_text(text)
    return path


SMALL_CHAIN = """
run_dir: {run}
overlays: [trainer/cpu.yaml]
jobs: 2
threads: 1
seeds: [0]
steps:
  posts: {{verb: demo-posts, set: {{out: "${{run_dir}}/posts", train: 24, val: 6, test: 6}}}}
  teacher: {{verb: predict, config: teacher.yaml, after: [posts]}}
  models:
    verb: tiny-models
    after: [teacher]
    set: {{out: "${{run_dir}}/models", corpus: ["${{run_dir}}/teacher/rationales-train.jsonl"]}}
  assistant: {{verb: fit, config: assistant.yaml, after: [models], set: {short}}}
  augment:
    verb: predict
    config: augment.yaml
    after: [assistant]
    set: {{model.init_args.max_new_tokens: 24}}
  soft_labels: {{verb: predict, config: soft_labels.yaml, after: [augment]}}
  student: {{verb: fit, config: student.yaml, after: [soft_labels], seeds: true, set: {short}}}
  report: {{verb: report, after: [student], always: true, inherit: true, set: {{run_dir: "${{run_dir}}"}}}}
"""
EPOCH = "{model.init_args.max_new_tokens: 24, trainer.max_epochs: 1, trainer.log_every_n_steps: 1}"


def test_an_interrupted_chain_goes_on_where_it_was(tmp_path: Path) -> None:
    config = write_chain(tmp_path, SMALL_CHAIN.format(run=tmp_path / "run", short=EPOCH))
    command = [PROGRAM, "run", "--config", config]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "models" / "manifest.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    before = {path.parent.name: path.read_bytes() for path in (tmp_path / "run").glob("*/manifest.json")}
    assert {"posts", "teacher", "models"} <= before.keys()
    shown = call(*command[1:])
    assert "student, distilled" in shown
    for stage, manifest in before.items():
        assert (tmp_path / "run" / stage / "manifest.json").read_bytes() == manifest
    # A third time there is nothing left to do.
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/manifest.json")}
    call(*command[1:])
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/manifest.json")}
    # The second chain: the trained models as frozen bases under adapters, merged and asked.
    bases = [tmp_path / "run" / stage / "model" / "model.safetensors" for stage in ("assistant", "student-seed0")]
    before = {str(path): path.read_bytes() for path in bases}
    answer = call("run", "--config", "demo_lora.yaml", "--run_dir", tmp_path / "run")
    assert "probabilities" in answer
    assert before == {str(path): path.read_bytes() for path in bases}
    assert (tmp_path / "run" / "lora_student" / "model" / "adapter_config.json").is_file()
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "merged")
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]


def test_adapters_on_frozen_bases_are_trained_merged_and_asked(chain: Path, tmp_path: Path) -> None:
    lora = ["--config", "models/lora.yaml", "--model.init_args.optimizer.learning_rate", "0.01"]
    common = ["--run_dir", chain, *QUICK, *SHORT]
    base = (chain / "assistant" / "model" / "model.safetensors").read_bytes()
    call("fit", "--config", "assistant.yaml", *lora, "--stage", "lora", "--model.init_args.pretrained",
         chain / "assistant", *common)  # fmt: skip
    folder = chain / "lora" / "model"
    assert (folder / "adapter_config.json").is_file()
    assert not (folder / "model.safetensors").exists()
    assert (chain / "assistant" / "model" / "model.safetensors").read_bytes() == base
    adapted = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert adapted
    assert not [name for name in adapted if "visual" in name]
    checkpoint = chain / "lora" / "checkpoints" / "best.ckpt"
    assert checkpoint.stat().st_size < len(base)
    picture = sorted((chain / "posts" / "posts" / "images").glob("test-*.png"))[0]
    asked = ["--image", picture, "--text", "Maple Cafe is fine", "--aspect", "Maple Cafe", "--max_new_tokens", 16,
             "--as_json", "true"]  # fmt: skip
    call("export", "--model", chain / "lora", "--out", tmp_path / "merged")
    answers = [answer_of(model, *asked) for model in (folder, tmp_path / "merged", checkpoint)]
    for answer in answers[1:]:
        assert answer["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=1e-4)
    # The adapter learnt something: the base alone answers otherwise.
    alone = answer_of(chain / "assistant", *asked)
    assert alone["probabilities"] != pytest.approx(answers[0]["probabilities"], abs=1e-4)


def run_few(tmp_path: Path, name: str, data_root: Path) -> Path:
    """Runs a chain of real posts with a handful of posts of each split and one epoch; gives back its folder."""
    text = (CHECKOUT / "conf" / name).read_text()
    assert "overlays: [trainer/cpu.yaml, " in text
    text = text.replace("overlays: [trainer/cpu.yaml, ", "overlays: [few.yaml, trainer/cpu.yaml, ", 1)
    text = text.replace("max_new_tokens: 420", "max_new_tokens: 24")
    (tmp_path / "few.yaml").write_text(
        "data: {init_args: {limit: 10}}\ntrainer: {max_epochs: 1, log_every_n_steps: 1}\n"
    )
    config = write_chain(tmp_path, text)
    done = subprocess.run(
        [PROGRAM, "run", "--config", config, "--run_dir", "run", "--data_root", data_root],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return tmp_path / "run"


def test_the_real_posts_go_through_the_chain(shared_data: Path, tmp_path: Path) -> None:
    """The Twitter-2015 chain: split by picture and text, recorded rationales."""
    run_dir = run_few(tmp_path, "twitter15_recorded.yaml", shared_data / "twitter15")
    assert json.loads((run_dir / "metrics.json").read_text())["systems"]
    assert {"teacher", "assistant"} <= {path.name for path in run_dir.iterdir()}


def test_mvsa_goes_through_the_chain(shared_data: Path, tmp_path: Path) -> None:
    """Raw annotations are merged, split and converted, and every stage reads the conversion."""
    run_dir = run_few(tmp_path, "mvsa.yaml", shared_data / "mvsa_sample")
    data = json.loads((run_dir / "data" / "metrics.json").read_text())
    assert sum(data["posts"].values()) == 497
    assert data["left_out"] == {"contradicting text and image labels": 41}
    systems = {
        system["system"]: system["posts"] for system in json.loads((run_dir / "metrics.json").read_text())["systems"]
    }
    assert systems["student, distilled"] == systems["assistant"] == 10


def test_twitter_2017_goes_through_the_chain(shared_data: Path, tmp_path: Path) -> None:
    """The real texts and labels with generated pictures, in the splits that the files have."""
    root = tmp_path / "root"
    (root / "twitter2017").mkdir(parents=True)
    (root / "twitter2017_images").mkdir()
    for path in (shared_data / "twitter15" / "tsv" / "twitter2017").glob("*.tsv"):
        (root / "twitter2017" / path.name).symlink_to(path)
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            picture = root / "twitter2017_images" / line.split("\t")[2]
            if not picture.exists():
                Image.new("RGB", (32, 40), (sum(picture.name.encode()) % 256, 90, 120)).save(picture, "JPEG")
    run_dir = run_few(tmp_path, "twitter17.yaml", root)
    data = json.loads((run_dir / "data" / "metrics.json").read_text())
    assert data == {
        "kind": "data",
        "title": "data",
        "posts": {"train": 3562, "val": 1176, "test": 1234},
        "left_out": {},
    }
    description = json.loads((run_dir / "data" / "dataset.json").read_text())
    assert description["labels"] == ["positive", "neutral", "negative"]
    assert (run_dir / "student-seed0" / "manifest.json").is_file()
