"""Where a configuration's name leads."""

from pathlib import Path

import pytest

from mulcot import config_files
from mulcot.config_files import find_config
from mulcot.types import InputError


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, beside it the installed configurations."""
    installed = tmp_path / "installed"
    (installed / "models").mkdir(parents=True)
    (installed / "student.yaml").write_text("installed: true")
    (installed / "models" / "tiny.yaml").write_text("installed: true")
    monkeypatch.setattr(config_files, "installed_configs", lambda: installed)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def test_looks_in_the_working_folder_then_its_conf_then_the_installed(places: Path) -> None:
    assert find_config("student.yaml") == places.parent / "installed" / "student.yaml"
    (places / "conf").mkdir()
    (places / "conf" / "student.yaml").write_text("mine: true")
    assert find_config("student.yaml").resolve() == places / "conf" / "student.yaml"
    (places / "student.yaml").write_text("nearer: true")
    assert find_config("student.yaml").resolve() == places / "student.yaml"


def test_relative_names_reach_into_folders(places: Path) -> None:
    assert find_config("models/tiny.yaml") == places.parent / "installed" / "models" / "tiny.yaml"


def test_an_existing_path_is_taken(places: Path) -> None:
    path = places.parent / "installed" / "student.yaml"
    assert find_config(str(path)) == path


@pytest.mark.parametrize(
    ("name", "hint"),
    [("studnet.yaml", "student.yaml"), ("student", "student.yaml"), ("tiny.yaml", "models/tiny.yaml")],
)
@pytest.mark.usefixtures("places")
def test_an_unknown_name_lists_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}: .*near it are .*{hint}"):
        find_config(name)


@pytest.mark.usefixtures("places")
def test_an_absolute_path_that_does_not_exist_is_not_looked_up_by_name() -> None:
    with pytest.raises(InputError, match=r"near it are student\.yaml"):
        find_config("/nowhere/student.yaml")


@pytest.mark.usefixtures("places")
def test_a_folder_or_nothing_is_no_configuration() -> None:
    with pytest.raises(InputError):
        find_config("models")
    with pytest.raises(InputError, match=r"known are models/tiny\.yaml, student\.yaml"):
        find_config("")


def test_the_installed_folder_is_in_the_wheel_or_beside_the_package() -> None:
    folder = config_files.installed_configs()
    assert folder.parent.name == "mulcot" or (folder.parent / "mulcot" / "config_files.py").is_file()
