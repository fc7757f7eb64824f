"""What is wrong in a chain's file is named: the file, the key, and what would be right."""

from pathlib import Path

import pytest

from mulcot.chain import main_run
from mulcot.chain_plan import Labelling, read_chain
from mulcot.types import InputError


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fit.yaml").write_text("name: fit")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: {a: {verb: make}}\nrun_dir: r\njob: 2", r"chain.yaml: unknown key `job`; did you mean `jobs`"),
        ("run_dir: r", r"chain.yaml: `steps` is missing"),
        ("steps: {a: {verb: make}}", r"chain.yaml: `run_dir` is missing; .*--run_dir"),
        ("run_dir: r\nsteps: {}", r"`steps` must be a mapping of at least one step"),
        ("run_dir: r\njobs: 0\nsteps: {a: {verb: make}}", r"`jobs` must be a whole number from 1, not 0"),
        ("run_dir: r\nsteps: {a: {verb: make, afer: []}}", r"steps.a: unknown key `afer`; did you mean `after`"),
        ("run_dir: r\nsteps: {a: {set: {x: 1}}}", r"steps.a: `verb` is missing"),
        ("run_dir: r\nsteps: {a: [make]}", r"steps.a: a step is a mapping"),
        ("run_dir: r\nsteps: {../a: {verb: make}}", r"steps: '../a' names a folder"),
        ("run_dir: r\nsteps: {a: {verb: make, after: b}}", r"steps.a: `after` must be a list of names, not 'b'"),
        ("run_dir: r\nsteps: {ast: {verb: m}, b: {verb: m, after: [asst]}}", r"steps.b: .* `asst`; did you mean `ast`"),
        (
            "run_dir: r\nsteps: {a: {verb: m, after: [b]}, b: {verb: m, after: [a]}}",
            r"steps: a after b after a is a circle",
        ),
        ("run_dir: r\nsteps: {a: {verb: m, after: [a]}}", r"steps: a after a is a circle"),
        ("run_dir: r\nsteps: {a: {verb: fit}}", r"steps.a: `config` is missing"),
        ("run_dir: r\nsteps: {a: {verb: fit, config: fti.yaml}}", r"steps.a: fti.yaml: .*near it are fit.yaml"),
        ("run_dir: r\nsteps: {a: {verb: m, config: fit.yaml}}", r"steps.a: `config` goes only with fit, validate"),
        ("run_dir: r\nsteps: {a: {verb: fit, config: fit.yaml, seeds: true}}", r"steps.a: `seeds: true` needs a list"),
        ("run_dir: r\nsteps: {a: {verb: m, set: {x: '${rundir}'}}}", r"`\${rundir}` means .*; did you mean `run_dir`"),
        ("run_dir: r\nsteps: {a: {verb: m, set: {x: '${oc.env:HOME}'}}}", r"steps.a: `\${oc.env:HOME}` means nothing"),
        ("run_dir: r\nsteps: {a: {verb: m}, a: {verb: m}}", r"chain.yaml:2: not YAML: the key a stands twice"),
        ("run_dir: [r\n", r"chain.yaml:2: not YAML"),
        ("- a", r"chain.yaml: a chain is a mapping"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(text: str, message: str) -> None:
    Path("chain.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        main_run(["--config", "chain.yaml"])
    assert "\n" not in str(caught.value)
    assert not Path("r").exists()


TEACHER_CHAIN = """
run_dir: r
steps:
  teacher: {verb: predict, config: teacher.yaml, overlays: [mine.yaml]}
  after: {verb: fit, config: fit.yaml, after: [teacher]}
"""


@pytest.mark.parametrize(
    ("labelling", "more"),
    [
        (Labelling(), []),
        (Labelling("openai"), ["--config", "teachers/openai.yaml"]),
        (Labelling("other.yaml", yes=True), ["--config", "other.yaml", "--yes"]),
    ],
)
def test_another_teacher_goes_to_the_steps_that_label_alone(labelling: Labelling, more: list[str]) -> None:
    Path("chain.yaml").write_text(TEACHER_CHAIN)
    plain, given = read_chain(Path("chain.yaml")), read_chain(Path("chain.yaml"), labelling=labelling)
    assert given.steps["teacher"].arguments == (*plain.steps["teacher"].arguments, *more)
    assert given.steps["after"] == plain.steps["after"]


def test_another_teacher_for_a_chain_without_one_is_an_error() -> None:
    Path("chain.yaml").write_text("run_dir: r\nsteps: {a: {verb: fit, config: fit.yaml}}")
    with pytest.raises(InputError, match=r"--teacher: no step of chain\.yaml has `config: teacher\.yaml`"):
        main_run(["--config", "chain.yaml", "--teacher", "openai"])
