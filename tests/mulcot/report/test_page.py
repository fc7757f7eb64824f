"""The page of a run: its numbers are those of metrics.json, its texts are texts, and it asks nobody for anything."""

import json
import re
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from data_modules.readers import Converted
from mulcot.cli import main
from mulcot.predictions import Prediction
from mulcot.report import main_report, report
from mulcot.types import InputError

HOSTILE = (
    "<script>alert(1)</script> \"'><img src=x onerror=alert(2)> </style></title></textarea> <!-- {{ 7*7 }} {% raw %} & "
    "&lt; https://example.org/a.png \x00\x1b[31m \x0b\x85\u2028 \u202eevil\u202c \u200f \ud800 javascript:alert(3)"
)
WRONG = {"positive": "neutral", "neutral": "negative", "negative": "neutral"}
REASONING = {"bleu": 0.25, "rouge_l": 0.5, "parse_rate": 0.9, "agreement_with_gold": 0.7, "agreement_with_answer": 0.8}


def said(gold, right):
    return [label if n < right else WRONG[label] for n, label in enumerate(gold)]


@pytest.fixture
def whole(hand_run, picture):
    """A run with every part that a page can show."""

    def with_picture(row: Prediction) -> Prediction:
        return replace(row, image=str(picture))

    hand_run.teacher()
    for seed, right in ((0, 7), (1, 9)):
        hand_run.model(f"student-{seed}", "student, distilled", seed, said(hand_run.gold, right),
                       change=with_picture, reasoning=REASONING | {"bleu": 0.2 + seed / 10})  # fmt: skip
        hand_run.model(f"alone-{seed}", "student, labels alone", seed, said(hand_run.gold, right - 1))
    hand_run.model("assistant", "assistant", 0, said(hand_run.gold, 8), reasoning=REASONING)
    with SummaryWriter(str(hand_run.folder / "student-0" / "tensorboard")) as writer:
        for step in range(3):
            writer.add_scalar("loss/reasoning/ce", 3.0 - step, step)
            writer.add_scalar("loss/reasoning/kl", 6.0 - 2 * step, step)
            writer.add_scalar("val/accuracy", 0.5 + step / 10, step)
            writer.add_scalar("epoch", step, step)
    return hand_run


def test_the_numbers_are_those_of_the_metrics(whole, read_page, capsys):
    result = report(whole.folder)
    page = read_page(whole.folder / "report.html")
    written = json.loads((whole.folder / "metrics.json").read_text(encoding="utf-8"))
    assert written == result
    rows = {row[0].words: row for row in page.table("Test split: systems")[1:]}
    for system in written["systems"]:
        (row,) = [row for name, row in rows.items() if name.startswith(system["system"])]
        names = ("accuracy", "weighted_f1", "macro_f1", "bleu", "rouge_l")
        means = [system["scores"][name] and system["scores"][name]["mean"] for name in names]
        assert [cell.value for cell in row[1:6]] == means
    # By hand: 7 and 9 of 10 right.
    assert rows["student, distilled 2 seeds, 10 posts"][1].words == "0.800 ± 0.141"
    for seed, right in ((0, 0.7), (1, 0.9)):
        interval = json.loads((whole.folder / f"student-{seed}" / "metrics.json").read_text())["test"]["classification"]
        low, high = interval["intervals"]["accuracy"]
        assert rows[f"seed {seed} student-{seed}"][1].words == f"{right:.3f} [{low:.3f}, {high:.3f}]"
        assert rows[f"seed {seed} student-{seed}"][1].attributes["title"] == (
            f"{right} (student-{seed}/metrics.json: test.classification.accuracy)"
        )


def test_differences_confusions_labels_and_costs(whole, read_page, capsys):
    result = report(whole.folder)
    page = read_page(whole.folder / "report.html")
    rows = page.table("Paired differences from “student, labels alone”")
    distilled = next(row for row in rows if row[0].words.startswith("student, distilled"))
    assert distilled[2].value == pytest.approx(0.1)
    seeds = [row for row in rows if row[0].words in ("seed 0", "seed 1")]
    assert [row[5].words for row in seeds] == ["1 : 0", "1 : 0"]
    assert [row[6].value for row in seeds] == [1.0, 1.0]
    # Right are the first 7 and 9 of 4 positive, 5 neutral, 1 negative posts.
    confusion = page.table("student, distilled, summed over 2 seeds")
    assert [[cell.value for cell in row[1:]] for row in confusion[1:]] == [[8, 0, 0], [0, 8, 2], [0, 2, 0]]
    (labels,) = [t for t in page.all("table") if "precision" in t.text and t.all("caption")[0].text == "assistant"]
    cells = [[cell.value for cell in row.children if hasattr(cell, "value")][1:] for row in labels.all("tr")[1:]]
    # The assistant has 8 right: all positive, 4 of 5 neutral; it says neutral once and negative once too often.
    assert cells[1] == [pytest.approx(4 / 5), pytest.approx(4 / 5), pytest.approx(4 / 5), 5, 5]
    costs = {row[0].words: row[1].words for row in page.table("Costs")[1:]}
    assert costs["requests to the teacher"] == "12"
    assert costs["money"] == "not known no prices were given"
    assert result["costs"]["wall_seconds"] == pytest.approx(4.25 + 5)


def test_curves_are_those_of_tensorboard(whole, read_page, capsys):
    report(whole.folder)
    page = read_page(whole.folder / "report.html")
    figures = {figure.all("figcaption")[0].text: figure for figure in page.all("figure")}
    curves = figures["student, distilled: reasoning"].all("svg")[0]
    assert curves.attributes["aria-label"] == "student, distilled: reasoning: ce from 3 to 1; kl from 6 to 2."
    # Steps 0 to 2 over 46 to 442, values 1 to 6 over 210 to 10.
    paths = [path.attributes["d"] for path in curves.all("path") if path.attributes["class"].startswith("curve")]
    assert paths == ["M46 130 L244 170 L442 210", "M46 10 L244 90 L442 170"]
    accuracy = figures["Validation accuracy"].all("svg")[0]
    assert "student, distilled from 0.5 to 0.7" in accuracy.attributes["aria-label"]
    assert [tick.text for tick in accuracy.all("text")][-5:-2] == ["1", "2", "3"]


def test_an_event_file_that_cannot_be_read_is_noted(whole, read_page, capsys):
    (events,) = (whole.folder / "student-0" / "tensorboard").iterdir()
    events.write_bytes(b"no events at all, but long enough for a header")
    report(whole.folder)
    page = read_page(whole.folder / "report.html")
    assert "student-0/tensorboard holds no curve that can be read" in page.text


def test_examples_show_post_picture_and_answers(whole, read_page, capsys):
    report(whole.folder)
    page = read_page(whole.folder / "report.html")
    groups = [heading.text for heading in page.all("h3")]
    assert groups.index("Right") < groups.index("Worst mistakes")
    articles = {article.attributes["aria-label"]: article for article in page.all("article")}
    # Student 0 has the last three of ten posts wrong.
    assert {"Post p7", "Post p8", "Post p9"} <= articles.keys()
    assert len(articles) == 4 + 3
    example = articles["Post p9"]
    (image,) = example.all("img")
    assert (image.attributes["width"], image.attributes["height"]) == ("224", "112")
    assert image.attributes["alt"] == "Picture of post p9"
    assert image.attributes["src"].startswith("data:image/jpeg;base64,")
    assert example.all("blockquote")[0].text == "Post number 9."
    rows = {row.all("th")[0].text: row.all("td") for row in example.all("tr")[1:]}
    assert [cell.words for cell in rows["label"]] == [
        "✓ negative teacher-explained",
        "✗ neutral neutral 0.800, positive 0.100, negative 0.100",
        "✗ neutral neutral 0.800, positive 0.100, negative 0.100",
    ]
    assert [d.text for d in rows["Prediction"][0].all("del")] == ["negative"]
    assert [i.text for i in rows["Prediction"][2].all("ins")] == ["neutral"]
    assert rows["Text_analysis"][2].all("ins") == []


def test_the_worst_mistakes_are_the_surest(hand_run, read_page, capsys):
    sure = {f"p{n}": 0.4 + n / 20 for n in range(10)}

    def surer(row: Prediction) -> Prediction:
        number = int(row.answer.post_id[1:])
        return hand_run.prediction(number, row.answer.label, row.gold, sure[row.answer.post_id])

    hand_run.model("student", "student, distilled", 0, said(hand_run.gold, 2), change=surer)
    report(hand_run.folder)
    page = read_page(hand_run.folder / "report.html")
    shown = [article.attributes["aria-label"] for article in page.all("article")]
    assert set(shown[:2]) == {"Post p0", "Post p1"}
    assert shown[2:] == ["Post p9", "Post p8", "Post p7", "Post p6"]


def test_a_reply_that_is_no_rationale_is_shown_as_it_was_written(hand_run, read_page, capsys):
    def broken(row: Prediction) -> Prediction:
        if row.answer.post_id != "p3":
            return row
        return hand_run.prediction(
            3, "positive", "positive", rationale=None, reply="Well, <b>no</b>", refusal="no JSON"
        )

    hand_run.model("student", "student, distilled", 0, hand_run.gold, change=broken)
    report(hand_run.folder)
    page = read_page(hand_run.folder / "report.html")
    assert "Replies that are no rationale" in [heading.text for heading in page.all("h3")]
    example = page.all("article")[-1]
    rows = {row.all("th")[0].text: row.all("td") for row in example.all("tr")[1:]}
    assert rows["reply as written"][0].text == "Well, <b>no</b>"
    assert "no JSON" in rows["label"][0].text


def test_hostile_texts_stay_texts(hand_run, read_page, capsys):
    quiet = HOSTILE.replace("\ud800", "")  # which no file in UTF-8 can hold

    def hostile(row: Prediction) -> Prediction:
        words = hand_run.rationale(row.answer.label, quiet)
        return hand_run.prediction(0, row.answer.label, row.gold, post_id=row.answer.post_id + quiet, text=quiet,
                                   aspect=quiet, image=quiet * 40, rationale=words)  # fmt: skip

    hand_run.teacher()
    title = f"student {quiet}"
    hand_run.model("student", title, 0, said(hand_run.gold, 5), change=hostile, left_out={quiet: 3})
    assert main_report(["--run_dir", str(hand_run.folder)]) == 0
    html = (hand_run.folder / "report.html").read_text(encoding="utf-8")
    page = read_page(html)
    elements = page.everything()
    assert {element.tag for element in elements} & {"script", "iframe", "object", "link", "base", "form", "b"} == set()
    assert [name for element in elements for name in element.attributes if name.startswith("on")] == []
    assert len(page.all("style")) == len(page.all("title")) == 1
    assert re.findall("[\x00-\x08\x0b-\x1f\u200f\u202a-\u202e\u2066-\u2069]", html) == []
    example = page.all("article")[0]
    expected = quiet
    for hidden in "\x00\x1b\x0b\x85\u2028\u202e\u202c\u200f":
        expected = expected.replace(hidden, f"[U+{ord(hidden):04X}]")
    assert example.all("blockquote")[0].text == expected
    assert "{{ 7*7 }}" in example.text
    assert "49" not in example.all("blockquote")[0].text
    assert example.all("img") == []
    assert "No picture" in example.text


def test_the_page_asks_nobody_for_anything(whole, read_page, capsys):
    report(whole.folder)
    html = (whole.folder / "report.html").read_text(encoding="utf-8")
    page = read_page(html)
    elements = page.everything()
    policy = [m.attributes["content"] for m in page.all("meta") if "http-equiv" in m.attributes]
    assert policy == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]
    for element in elements:
        for name in ("src", "href", "data", "action", "poster", "srcset", "xlink:href"):
            address = element.attributes.get(name)
            assert address is None or address.startswith(("#", "data:image/jpeg;base64,")), address
    assert "url(" not in page.all("style")[0].text
    assert "@import" not in page.all("style")[0].text
    assert page.all("script") == []
    assert len(html) < 300_000


def test_the_page_can_be_read_without_eyes(whole, read_page, capsys):
    report(whole.folder)
    page = read_page(whole.folder / "report.html")
    levels = [int(e.tag[1]) for e in page.everything() if re.fullmatch(r"h\d", e.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(image.attributes.get("alt") for image in page.all("img"))
    assert all(header.attributes.get("scope") in ("col", "row") for header in page.all("th"))
    charts = [svg for svg in page.all("svg") if svg.attributes.get("role") == "img"]
    assert charts
    assert all(svg.attributes["aria-label"] for svg in charts)
    assert page.all("html")[0].attributes["lang"] == "en"
    ids = [e.attributes["id"] for e in page.everything() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    assert {a.attributes["href"][1:] for a in page.all("a")} <= set(ids)


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_enough_contrast(hand_run, read_page, scheme, capsys):
    hand_run.teacher()
    report(hand_run.folder)
    css = read_page(hand_run.folder / "report.html").all("style")[0].text
    colours = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6});", css.split("prefers-color-scheme: dark")[scheme]))
    texts = [(ink, on) for ink in ("text", "muted", "accent", "good", "bad") for on in ("page", "surface")]
    texts += [("text", "mark"), ("text", "gone"), ("text", "shade")]
    curves = [(f"c{style}", "surface") for style in range(6)]
    for pairs, least in ((texts, 4.5), (curves, 3.0)):
        for ink, on in pairs:
            high, low = sorted((luminance(colours[ink]), luminance(colours[on])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= least, (ink, on)


def test_how_to_reproduce_is_told(whole, read_page, capsys):
    steps = [
        {"name": "student-0", "verb": "fit", "command": ["/usr/bin/python", "-m", "mulcot", "fit", "--stage", "a b"]}
    ]
    chain = {"config": "demo.yaml", "run_dir": "runs/hand", "data_root": None, "steps": steps}
    (whole.folder / "chain.json").write_text(json.dumps(chain), encoding="utf-8")
    (whole.folder / "student-0" / "config-fit.yaml").write_text("seed_everything: 0\n", encoding="utf-8")
    report(whole.folder)
    page = read_page(whole.folder / "report.html")
    commands = [pre.text for pre in page.all("pre")]
    assert commands[0] == "mulcot run --config demo.yaml --run_dir runs/hand"
    assert "mulcot fit --stage 'a b'" in commands
    (details,) = [d for d in page.all("details") if d.all("summary")[0].text == "student-0"]
    told = dict(zip((dt.text for dt in details.all("dt")), (dd.words for dd in details.all("dd")), strict=True))
    assert told["seed"] == "0"
    assert told["versions"] == "python 3.11.0"
    assert told["configuration"] == "student-0/config-fit.yaml"
    assert told["command key"] == "k" * 64
    assert [dd.attributes["title"] for dd in details.all("dd") if dd.text == "in.jsonl"] == ["a" * 64]


def test_a_stage_of_many_files_points_to_its_manifest(hand_run, read_page, capsys):
    path = hand_run.teacher() / "manifest.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["outputs"] = {f"images/{n:03d}.png": f"{n:064d}" for n in range(137)}
    path.write_text(json.dumps(values), encoding="utf-8")
    report(hand_run.folder)
    page = read_page(hand_run.folder / "report.html")
    assert [dd.text for dd in page.all("dd") if dd.text.endswith(".png")][-1] == "images/019.png"
    assert "117 more in teacher/manifest.json." in page.text


@pytest.mark.parametrize("stage", ["teacher", "assistant", "alone", "student"])
def test_a_run_with_one_stage_has_a_page(hand_run, read_page, stage, capsys):
    title = {"alone": "student, labels alone", "student": "student, distilled"}.get(stage, stage)
    if stage == "teacher":
        hand_run.teacher()
    else:
        (hand_run.model(stage, title, 0, said(hand_run.gold, 6)) / "predictions.jsonl").unlink()
    report(hand_run.folder)
    page = read_page(hand_run.folder / "report.html")
    assert stage in page.table("Stages of the chain")[1][0].text
    assert page.all("article") == []


def test_a_run_that_was_not_tested_has_a_page(hand_run, read_page, capsys):
    hand_run.write("student", {"kind": "student", "title": "student, distilled", "seed": 0}, None)
    (hand_run.folder / "chain.json").write_text('{"steps": [{"name": "assistant", "verb": "fit"}]}', encoding="utf-8")
    report(hand_run.folder)
    page = read_page(hand_run.folder / "report.html")
    rows = [[cell.words for cell in row] for row in page.table("Stages of the chain")[1:]]
    assert rows == [["student", "not finished", "student, distilled, seed 0"], ["assistant", "not run", "—"]]
    assert "student has not been tested" in page.text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("teacher/rationales-test.jsonl", '{"post_id": "p9"}\n', r"rationales-test\.jsonl, line 1"),
        ("student-0/predictions.jsonl", "{\n", r"student-0/predictions\.jsonl, line 1: "),
        ("student-0/config-fit.yaml", "[", r"student-0/config-fit\.yaml:1: not YAML"),
        ("student-0/manifest.json", "{", r"student-0/manifest\.json: the manifest is damaged"),
        ("chain.json", '{"steps": 3}', r"chain\.json: steps: "),
        ("chain.json", '{"steps": [], "config": 3}', r"chain\.json: config: "),
    ],
)
def test_a_damaged_file_is_named(whole, file, content, message):
    (whole.folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        report(whole.folder)
    assert "\n" not in str(error.value)


def test_a_place_that_cannot_be_written_is_named(hand_run):
    hand_run.teacher()
    (hand_run.folder / "file").touch()
    with pytest.raises(InputError, match=r"file/page\.html: the page cannot be written there"):
        report(hand_run.folder, page=hand_run.folder / "file" / "page.html")


def test_a_run_that_moved_finds_its_pictures(hand_run, read_page, capsys):
    images = hand_run.folder / "posts" / "images"
    images.mkdir(parents=True)
    Image.new("RGB", (30, 60), "green").save(images / "a.png")

    def elsewhere(row: Prediction) -> Prediction:
        return replace(row, image="runs/before/posts/images/a.png")

    hand_run.model("student", "student, distilled", 0, hand_run.gold, change=elsewhere)
    (hand_run.folder / "chain.json").write_text('{"steps": [], "run_dir": "runs/before"}', encoding="utf-8")
    report(hand_run.folder)
    images = read_page(hand_run.folder / "report.html").all("img")
    assert [(image.attributes["width"], image.attributes["height"]) for image in images] == [("30", "60")] * 4


def test_a_hostile_picture_is_refused_by_name(hand_run, tmp_path, read_page, capsys):
    path = tmp_path / "picture.svg"
    path.write_text("<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", encoding="utf-8")
    hand_run.model("student", "student, distilled", 0, hand_run.gold, change=lambda row: replace(row, image=str(path)))
    report(hand_run.folder)
    page = read_page(hand_run.folder / "report.html")
    assert page.all("img") == []
    assert f"No picture: {path}: it holds no JPEG, PNG, WEBP or GIF data" in page.words


def test_pictures_in_a_table_come_from_the_reader(hand_run, picture, read_page, capsys):
    folder = hand_run.folder.parent / "data"
    folder.mkdir(parents=True)
    same = {"text": "A post.", "image": picture.name}
    lines = [same | {"id": f"p{n}", "label": gold} for n, gold in enumerate(hand_run.gold)]
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    source = ["--posts", "Table", "--posts.files", json.dumps({"test": str(folder / "test.jsonl")})]
    source += ["--posts.image_root", str(picture.parent)]
    assert main(["data", "convert", *source, "--out", str(folder / "converted"), "--embed_images"]) == 0
    places = {post.id: str(post.image) for post in Converted(folder / "converted").read("test")}

    def in_table(row: Prediction) -> Prediction:
        return replace(row, image=places[row.answer.post_id])

    assert places["p0"].endswith(", row 1")
    stage = hand_run.model("student", "student, distilled", 0, hand_run.gold, change=in_table)
    reader = {"class_path": "Converted", "init_args": {"folder": str(folder / "converted")}}
    (stage / "config-fit.yaml").write_text(json.dumps({"data": {"init_args": {"posts": reader}}}), encoding="utf-8")
    report(hand_run.folder)
    images = read_page(hand_run.folder / "report.html").all("img")
    assert [(image.attributes["width"], image.attributes["height"]) for image in images] == [("224", "112")] * 4
    (folder / "converted").rename(folder / "moved")
    report(hand_run.folder)
    page = read_page(hand_run.folder / "report.html")
    assert page.all("img") == []
    assert "it lies in a table that cannot be opened" in page.text
    foreign = {"class_path": "antigravity.Reader", "init_args": {}}
    nested = {"class_path": "GroupedSplit", "init_args": {"reader": foreign}}
    (stage / "config-fit.yaml").write_text(json.dumps({"data": {"init_args": {"posts": nested}}}), encoding="utf-8")
    report(hand_run.folder)
    assert "its reader 'antigravity.Reader' is none of mulcot's" in read_page(hand_run.folder / "report.html").text
    assert "antigravity" not in sys.modules


def test_groups_of_posts_have_their_own_scores(hand_run, read_page, capsys):
    def grouped(row: Prediction) -> Prediction:
        number = int(row.answer.post_id[1:])
        return replace(row, aspect=None, slices={"conflict": "yes" if number % 2 else "no"})

    hand_run.teacher()
    for seed, right in ((0, 8), (1, 6)):
        hand_run.model(f"student-{seed}", "student, distilled", seed, said(hand_run.gold, right), change=grouped)
    report(hand_run.folder)
    page = read_page(hand_run.folder / "report.html")
    # Seed 0 has p8 and p9 wrong, seed 1 p6 to p9 too: one and two of the five odd posts, and of the five even ones.
    rows = [[cell.words for cell in row][:3] for row in page.table("By conflict")[1:]]
    assert rows == [["no", "5", "0.700 ± 0.141"], ["yes", "5", "0.700 ± 0.141"]]
    by_reference = {row[0].words: row[1:3] for row in page.table("By reference rationale")[1:]}
    assert [cell.value for cell in by_reference["teacher-predicted"]] == [8, pytest.approx((8 / 8 + 6 / 8) / 2)]
    assert [cell.value for cell in by_reference["teacher-explained"]] == [2, 0]


def test_rationales_have_scores_by_source_and_by_field(hand_run, read_page, capsys):
    sources = {
        "bleu": 0.3,
        "sentence_bleu": None,
        "rouge_l": 0.6,
        "meteor": None,
        "sim": -0.1,
        "agreement_with_gold": 0.9,
        "posts": 8,
    }
    reasoning = REASONING | {
        "sim": 0.35,
        "by_source": {"teacher-predicted": sources, "teacher-explained": sources | {"bleu": 0.1, "posts": 2}},
        "parse_rate_per_field": {"Text_analysis": 1.0, "Image_analysis": 0.9, "Prediction": 0.8},
        "unavailable": {"meteor": "no <data>"},
    }
    hand_run.model("student", "student, distilled", 0, hand_run.gold, reasoning=reasoning)
    report(hand_run.folder)
    page = read_page(hand_run.folder / "report.html")
    rows = {row[0].words: row[1:] for row in page.table("Rationales against the teacher's")}
    heads = [cell.words for cell in rows["system"]]
    assert heads == ["BLEU", "ROUGE-L", "Sim", "agrees with gold"]
    assert [cell.value for cell in rows["student, distilled all references"]] == [0.25, 0.5, 0.35, 0.7]
    assert [cell.value for cell in rows["without label-explained references"]] == [0.3, 0.6, -0.1, 0.9]
    assert rows["label-explained references alone"][0].value == 0.1
    assert rows["without label-explained references"][2].text == "−0.100"
    fields = page.table("Replies in which each field could be read")
    assert [cell.value for cell in fields[1][1:]] == [1.0, 0.9, None, None, 0.8]
    assert "Not computed: METEOR: no <data>." in page.words


def test_calibration_is_that_of_the_metrics(hand_run, read_page, capsys):
    folder = hand_run.model("student", "student, distilled", 0, hand_run.gold)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    bins = [(0.4, 0.6, 0.5, 0.25, 4), (0.9, 1.0, 1.0, 1.0, 6)]
    names = ("lower", "upper", "confidence", "accuracy", "posts")
    found = {"ece": 0.1, "calibration": [dict(zip(names, one, strict=True)) for one in bins]}
    metrics["test"]["classification"] |= found
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    report(hand_run.folder)
    page = read_page(hand_run.folder / "report.html")
    (figure,) = page.all("figure")
    (curve,) = [path for path in figure.all("svg")[0].all("path") if path.attributes["class"] == "curve s0"]
    assert curve.attributes["d"] == "M174 212.5 L302 10"
    assert "ECE: seed 0 0.100" in figure.words
    assert [span.value for span in figure.all("span")] == [0.1]


def test_probes_are_shown_where_there_are_some(hand_run, read_page, capsys):
    changes = {"posts": 9, "golds": 9, "accuracy": 0.25, "accuracy_before": 0.75, "labels_changed": 0.5}
    changes |= {"total_variation": 0.4, "probability_change": -0.3}
    probes = {"seed": 3, "posts": 9, "faithfulness": {"image_removed": changes}, "other_aspects": None}
    mark = {"posts": 4, "golds": 4, "accuracy": 0.5}
    probes |= {"conflict": {"yes": mark, "no": mark | {"accuracy": 1.0}}, "grounding": {"unavailable": "no <weights>"}}
    folder = hand_run.model("student", "student, distilled", 0, hand_run.gold)
    (folder / "probes.json").write_text(json.dumps(probes), encoding="utf-8")
    report(hand_run.folder)
    page = read_page(hand_run.folder / "report.html")
    rows = page.table("What happens without a part, or with another post's: 9 posts, seed 3")
    assert [cell.value for cell in rows[1][1:6]] == [9, 0.75, 0.25, 0.5, 0.4]
    conflict = page.table("Conflict, as the model itself sees it")
    assert [row[2].value for row in conflict[1:]] == [0.5, 1.0]
    assert "Not measured: grounding: no <weights>." in page.words
    (folder / "probes.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"student/probes\.json: seed: "):
        report(hand_run.folder)
