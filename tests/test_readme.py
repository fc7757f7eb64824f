"""The README's tree of files is the tree of files, and no command of it names a config that is not there."""

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
LISTED = {"conf": ".yaml", "mulcot": ".py", "stages": ".py", "data_modules": ".py", "benchmarks": ".py"}
"""The folders whose every file of this kind has a line of its own."""


def told() -> list[str]:
    """The paths of the tree, folders left out."""
    block = README.split("## Files", 1)[1].split("```")[1]
    paths, folders = [], []
    for line in block.strip("\n").splitlines():
        name = line.split()[0]
        folders = [*folders[: (len(line) - len(line.lstrip())) // 2], name]
        paths += [] if name.endswith("/") else ["".join(folders)]
    return paths


def test_every_file_has_one_line_and_every_line_a_file() -> None:
    paths = told()
    assert sorted(set(paths)) == sorted(paths)
    assert [path for path in paths if not list(CHECKOUT.glob(path))] == []
    files = {
        path.relative_to(CHECKOUT).as_posix()
        for folder, suffix in LISTED.items()
        for path in (CHECKOUT / folder).rglob(f"*{suffix}")
        if path.name != "__init__.py"
    }
    assert sorted(files - set(paths)) == []


def test_the_configs_that_it_names_are_there() -> None:
    own = {"my_posts.yaml", "my_teacher.yaml", "my_chain.yaml", "my_student.yaml", "my_stage.yaml"}
    named = set(re.findall(r"--config ([\w/]+\.yaml)", README)) - own
    assert {"student.yaml", "twitter15_recorded.yaml", "trainer/gpu_bf16.yaml"} <= named
    assert [name for name in sorted(named) if not (CHECKOUT / "conf" / name).is_file()] == []


def test_nothing_in_it_waits_to_be_filled_in() -> None:
    assert re.findall(r"@@\w*|TODO|XXX", README) == []
