"""Inspection as a run shows it: read back from what TensorBoard reads."""

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from mulcot.callbacks import CrossEntropy, ForwardKL, Inspection
from mulcot.callbacks.inspection_layout import BUCKETS, bucket_name, layout
from mulcot.callbacks.inspection_picture import confusion_picture
from mulcot.callbacks.inspection_sums import ResponsePlaces, TaskSums
from mulcot.callbacks.sampled_rationales import varied
from mulcot.checkpoints import read_checkpoint
from mulcot.cli import main
from mulcot.losses import Dense
from mulcot.models import head, hidden_states, load_model, load_processor
from mulcot.rows import SECTIONS, RowCollator, RowEncoder
from mulcot.types import DEFAULT_LABELS, InputError, Post, Rationale
from stages.objective import Objective

QUICK = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"]


def fit(chain: Path, stage: str, *args: object) -> None:
    command = ["fit", "--config", "student.yaml", "--run_dir", chain, "--stage", stage, *QUICK]
    short = ("--model.init_args.max_new_tokens", 24, "--test_after_fit", "false")
    assert main([str(arg) for arg in (*command, *short, *args)]) == 0


def events(stage: Path) -> EventAccumulator:
    found = EventAccumulator(
        str(stage / "tensorboard"), size_guidance=dict.fromkeys(("tensors", "scalars", "images", "histograms"), 0)
    )
    found.Reload()
    return found


def scalars(stage: Path, prefix: str) -> dict[str, list[float]]:
    found = events(stage)
    tags = [tag for tag in found.Tags()["scalars"] if tag.startswith(prefix)]
    return {tag: [event.value for event in found.Scalars(tag)] for tag in tags}


def page(found: EventAccumulator) -> dict[str, list[str]]:
    (event,) = found.Tensors("custom_scalars__config__")
    told = Layout.FromString(event.tensor_proto.string_val[0])
    return {
        f"{category.title}/{chart.title}": list(chart.multiline.tag)
        for category in told.category
        for chart in category.chart
    }


def test_every_curve_of_the_page_is_drawn(chain: Path) -> None:
    found = events(chain / "student")
    tags = found.Tags()["scalars"]
    for chart, patterns in page(found).items():
        for pattern in patterns:
            assert [tag for tag in tags if re.match(pattern, tag)], f"{chart}: {pattern}"
    assert page(found)["1 Hard against soft/reasoning: loss per token"] == [
        "^loss/reasoning/ce$",
        "^loss/reasoning/kl$",
    ]
    steps = [event.step for event in found.Scalars("loss/total")]
    for tag in tags:
        if tag.startswith(("gradient/", "sections/", "positions/", "assistant/", "top1/", "schedule/")):
            assert [event.step for event in found.Scalars(tag)] == steps, tag
    assert {event.value for event in found.Scalars("schedule/temperature/kl")} == {2.0}


def test_sections_and_positions_are_parts_of_the_mean(chain: Path) -> None:
    found = scalars(chain / "student", "")
    for term in ("ce", "kl"):
        whole = found[f"loss/reasoning/{term}"]
        for names in (
            [f"sections/{term}/{name}" for name in SECTIONS],
            [f"positions/{term}/{bucket_name(bucket)}" for bucket in range(BUCKETS)],
        ):
            for step, value in enumerate(whole):
                parts = [found[name][step] for name in names]
                assert min(parts) <= value <= max(parts)
    for name, values in found.items():
        if name.startswith(("assistant/reasoning/kept", "top1/")):
            assert all(0 <= value <= 1 + 1e-6 for value in values), name


def test_histograms_rationales_and_confusion_are_there(chain: Path) -> None:
    found = events(chain / "student")
    histograms = found.Tags()["histograms"]
    assert histograms == [] or set(histograms) >= {"loss_log10/reasoning/kl", "loss_by_position/kl"}
    metrics = json.loads((chain / "student" / "metrics.json").read_text())
    for split, images in (("val", 2), ("test", 1)):
        shown = found.Images(f"confusion/{split}")
        assert len(shown) == images  # two epochs, then the best one
        assert Image.open(io.BytesIO(shown[-1].encoded_image_string)).width > 300
        assert metrics[split]["classification"]["posts"] == 12
        for number in range(1, 5):
            told = found.Tensors(f"rationales_{split}/{number}/text_summary")
            assert len(told) == images
            text = told[-1].tensor_proto.string_val[0].decode()
            assert "Gold label: **" in text
            assert "| the student writes | the reference |" in text


def test_looking_changes_no_bit_of_the_weights_and_can_be_switched_off(chain: Path) -> None:
    two = ("--trainer.max_epochs", 2)  # what is shown after the first epoch must not tell on the second
    fit(chain, "looked_at", *two, "--inspection.histogram_every", 2, "--inspection.rationales", 2)
    fit(chain, "unseen", *two, "--inspection.enabled", "false")
    seen, unseen = (
        read_checkpoint(chain / stage / "checkpoints" / "last.ckpt")["state_dict"] for stage in ("looked_at", "unseen")
    )
    assert seen.keys() == unseen.keys()
    for name, value in seen.items():
        assert torch.equal(value, unseen[name]), name
    found, nothing = events(chain / "looked_at"), events(chain / "unseen")
    assert [event.step for event in found.Histograms("loss_log10/reasoning/kl")] == [1, 3, 5, 7, 9]
    assert "rationales_val/2/text_summary" in found.Tags()["tensors"]
    assert "rationales_val/3/text_summary" not in found.Tags()["tensors"]
    assert (nothing.Tags()["tensors"], nothing.Tags()["images"], nothing.Tags()["histograms"]) == ([], [], [])
    assert not scalars(chain / "unseen", ("gradient/", "sections/", "positions/", "assistant/", "top1/"))  # type: ignore[arg-type]
    assert scalars(chain / "unseen", "loss/") == scalars(chain / "looked_at", "loss/")


def test_values_are_of_the_whole_step_however_it_is_cut(chain: Path) -> None:
    common = ("--trainer.max_epochs", 1, "--data.init_args.posts_per_step", 24, "--inspection.rationales", 0)
    fit(chain, "whole", *common)
    fit(chain, "in_parts", *common, "--trainer.accumulate_grad_batches", 24)
    for prefix in ("gradient/", "sections/", "positions/", "assistant/", "top1/"):
        whole, parts = scalars(chain / "whole", prefix), scalars(chain / "in_parts", prefix)
        assert whole.keys() == parts.keys()
        assert whole
        for name, values in whole.items():
            assert parts[name] == pytest.approx(values, rel=5e-3, abs=1e-6), name


def test_any_logger_gets_the_scalars_and_none_is_needed(chain: Path) -> None:
    one = ("--trainer.max_epochs", 1)
    logger = f"{{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {{save_dir: {chain}, name: csv}}}}"
    fit(chain, "as_csv", *one, "--trainer.logger", logger)
    (file,) = (chain / "csv").rglob("metrics.csv")
    header = file.read_text().splitlines()[0].split(",")
    assert {"gradient/reasoning/soft", "sections/kl/Prediction", "loss/total", "val/accuracy"} <= set(header)
    fit(chain, "unlogged", *one, "--trainer.logger", "false")


@pytest.fixture(scope="module")
def encoder(chain: Path) -> RowEncoder:
    return RowEncoder(load_processor(str(chain / "models" / "student")), DEFAULT_LABELS)


def test_gradient_norms_are_those_of_autograd(chain: Path, encoder: RowEncoder) -> None:
    model = load_model(str(chain / "models" / "student"))
    posts = [json.loads(line) for line in (chain / "posts" / "posts" / "train.jsonl").read_text().splitlines()[:3]]
    text = Rationale("a", "b, c", "d", 'e "f"', "positive").to_json()
    rows = [
        encoder.row(
            Post(post["id"], post["text"], chain / "posts" / "posts" / "images" / post["image"], post["aspect"]),
            "reasoning",
            text,
        )
        for post in posts
    ]
    batch = RowCollator(encoder).batch(rows)
    count = len(batch.targets)
    with torch.no_grad():
        assistant = torch.randn(count, len(head(model).weight), generator=torch.Generator().manual_seed(0))
    batch = replace(batch, soft_labels=Dense(assistant))  # type: ignore[arg-type]
    terms = [CrossEntropy(), ForwardKL(temperature=2.0)]
    for term, name in zip(terms, ("ce", "kl"), strict=True):
        term.name = name
    objective = Objective(terms, lambda_soft=0.3)
    loss = objective.task_loss(model, "reasoning", batch, 1000, inspect=True)
    sums = TaskSums(["ce", "kl"], torch.device("cpu"))
    sums.add(loss, ResponsePlaces(encoder))
    told = sums.summary()
    # A plain second computation, with a graph of its own for each kind.
    hidden = hidden_states(model, batch.inputs).flatten(0, 1)[batch.positions].detach().requires_grad_()
    logits = head(model)(hidden)
    hard = 0.7 * torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum") / 1000
    p, log_q = (assistant / 2).softmax(-1), (logits / 2).log_softmax(-1)
    soft = 0.3 * 4 * (p * ((assistant / 2).log_softmax(-1) - log_q)).sum() / 1000
    for kind, value in (("hard", hard), ("soft", soft)):
        (gradient,) = torch.autograd.grad(value, hidden, retain_graph=True)
        assert told.gradients[kind] == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert told.statistics["student_right"] == pytest.approx(float((logits.argmax(-1) == batch.targets).float().mean()))
    agreed = (logits.argmax(-1) == assistant.argmax(-1)).float().mean()
    assert told.statistics["agreement"] == pytest.approx(float(agreed))
    assert told.statistics["entropy"] == pytest.approx(
        float(torch.distributions.Categorical(logits=assistant).entropy().mean()), rel=1e-5
    )


def test_the_page_names_what_the_run_has() -> None:
    hard_alone = layout({"classification": ["ce"]}, [])
    assert list(hard_alone) == ["1 Hard against soft", "5 Quality and schedules"]
    both = layout({"reasoning": ["ce", "kl", "a.b"], "classification": ["ce"]}, ["kl", "a.b"])
    assert list(both["2 Rationales by section"]) == [f"{name} per token by section" for name in ("kl", "a.b", "ce")]
    (_, tags) = both["1 Hard against soft"]["reasoning: loss per token"]
    assert [re.match(tags[2], f"loss/reasoning/{name}") is not None for name in ("a.b", "axb", "a.b2")] == [  # type: ignore[index]
        True,
        False,
        False,
    ]
    assert [bucket_name(bucket) for bucket in (0, BUCKETS - 1)] == ["000-012", "087-100"]


def test_the_confusion_picture_is_darkest_where_most_posts_are() -> None:
    labels = ["good", "so-so", "négatif"]
    confusion = {gold: {label: 9 if gold == label else 1 for label in labels} for gold in labels}
    picture = confusion_picture(confusion, "a title that is much wider than the matrix that it stands above, by far")
    dark = sorted(picture.getcolors(1 << 20) or [], reverse=True)[1:3]
    assert sum(dark[0][1]) > sum(dark[1][1])  # six pale cells, three dark ones
    assert dark[0][0] / dark[1][0] == pytest.approx(2, rel=0.1)
    empty = {gold: dict.fromkeys(labels, 0) for gold in labels}
    assert confusion_picture(empty, "").size[1] > 300
    many = {str(gold): {str(label): 1 for label in range(200)} for gold in range(200)}
    assert max(confusion_picture(many, "many labels").size) < 1200


def test_posts_to_ask_about_take_turns_by_label() -> None:
    posts = [Post(str(number), "", Path(), label=label) for number, label in enumerate("aaaaabbc")]
    assert varied(posts, 3) == [0, 5, 7]
    assert varied(posts, 4) == [0, 1, 5, 7]
    assert varied(posts, 99) == list(range(8))
    assert varied([], 4) == []


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match=r"inspection\.rationales is -1"):
        Inspection(rationales=-1)
    with pytest.raises(InputError, match=r"inspection\.rationale_epochs is 0"):
        Inspection(rationale_epochs=0)
    assert math.isfinite(Inspection().histogram_every)
