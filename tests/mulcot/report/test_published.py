"""Published numbers: given in a file, shown beside the same splits alone."""

import pytest

from mulcot.report import main_report
from mulcot.report.published import data_set_of, read_published
from mulcot.report.run import read_run
from mulcot.types import InputError, MissingInputError

ROW = "- {system: Other (3B), data_set: Twitter-2015, metric: accuracy, value: 0.75, source: 'A paper, table 2'}\n"
T15 = ["positive"] * 317 + ["neutral"] * 607 + ["negative"] * 113


def test_rows_stand_beside_a_run_on_the_official_split(hand_run, tmp_path, read_page, capsys):
    counts = {"positive": 928, "neutral": 1883, "negative": 368}
    hand_run.model("student", "student, distilled", 0, T15, T15, train_label_counts=counts)
    assert data_set_of(read_run(hand_run.folder)) == "Twitter-2015"
    file = tmp_path / "published.yaml"
    file.write_text(ROW + ROW.replace("Twitter-2015", "MVSA-Single").replace("Other", "Elsewhere"), encoding="utf-8")
    main_report(["--run_dir", str(hand_run.folder), "--published", str(file)])
    page = read_page(hand_run.folder / "report.html")
    rows = page.table("Reported by the paper: Twitter-2015")
    assert [[cell.words for cell in row] for row in rows[1:]] == [
        ["Other (3B)", "accuracy", "0.750", "A paper, table 2"]
    ]
    assert rows[1][2].value == 0.75
    assert "Reported by the paper; other splits, other models." in page.text


def test_another_split_shows_no_published_number(hand_run, tmp_path, read_page, capsys):
    hand_run.model("student", "student, distilled", 0, hand_run.gold)
    file = tmp_path / "published.yaml"
    file.write_text(ROW, encoding="utf-8")
    main_report(["--run_dir", str(hand_run.folder), "--published", str(file)])
    text = read_page(hand_run.folder / "report.html").words
    assert "0.750" not in text
    assert (
        "not shown, since they are of other data than this run's: 1. This run has the splits of none of the four data"
        in text
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROW.replace("0.75", "75.0"), r"row 1, field 'value': .*less than or equal to 1"),
        (ROW + ROW.replace("accuracy", "charm"), r"row 2, field 'metric': "),
        (ROW.replace("Twitter-2015", "Twitter"), r"row 1, field 'data_set': "),
        (ROW.replace("source", "origin"), r"row 1, field 'source': "),
        ("system: one", r"the file: "),
        ("[", r"not YAML"),
    ],
)
def test_a_wrong_file_is_named_with_row_and_field(tmp_path, content, message):
    file = tmp_path / "published.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=rf"published\.yaml:(1:)? {message}") as error:
        read_published(file)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingInputError, match=r"none\.yaml: there is no such file"):
        read_published(tmp_path / "none.yaml")


def test_published_numbers_do_not_go_with_two_runs(hand_run):
    with pytest.raises(InputError, match=r"leave out --against"):
        main_report(["--run_dir", "a", "--against", "b", "--published", "c"])
