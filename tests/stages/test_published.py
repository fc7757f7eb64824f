"""The published code's quirks against a re-computation of their formulas from whole logits."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_modules.readers import Table
from mulcot.callbacks import CrossEntropy, ForwardKL
from mulcot.models import Lora, load_model, load_processor
from mulcot.rows import RowBatch, RowCollator, RowEncoder
from mulcot.types import DEFAULT_LABELS, Post
from stages import StudentStage
from stages.objective import Objective
from stages.online_assistant import OnlineAssistant
from stages.published import PublishedQuirks

T, LAMBDA, STEP_TOKENS = 2.0, 0.3, 400
TARGET = '{"Text_analysis": "warm words!", "Prediction": "positive"}'


@pytest.fixture(scope="module")
def posts(embedded: Path) -> list[Post]:
    folder = embedded / "posts" / "posts"
    return list(Table({"train": folder / "train.jsonl"}, folder / "images").read("train"))[:3]


def batch_of(embedded: Path, posts: list[Post], pad_end: bool = False) -> RowBatch:
    encoder = RowEncoder(load_processor(str(embedded / "models" / "student")), DEFAULT_LABELS, pad_end=pad_end)
    texts = [TARGET, TARGET[:-1] + ', "Final_conclusion": "it is warm"}', '{"Prediction": "neutral"}']
    rows = [encoder.row(post, "reasoning", text) for post, text in zip(posts, texts, strict=True)]
    return RowCollator(encoder).batch(rows)


def models(embedded: Path, dropout: bool = False) -> tuple[nn.Module, OnlineAssistant]:
    student = load_model(str(embedded / "models" / "student"))
    return student, OnlineAssistant(str(embedded / "models" / "assistant"), dropout=dropout)


def objective_loss(student: nn.Module, assistant: OnlineAssistant, batch: RowBatch, quirks: PublishedQuirks) -> Tensor:
    ce, kl = CrossEntropy(), ForwardKL(temperature=T)
    ce.name, kl.name = "ce", "kl"
    objective = Objective([ce, kl], LAMBDA, assistant, quirks)
    return objective.task_loss(student, "reasoning", batch, STEP_TOKENS).total


def whole_logits(model: Any, batch: RowBatch) -> Tensor:
    logits: Tensor = model(**batch.inputs).logits
    return logits


def labels_of(batch: RowBatch) -> Tensor:
    """`[B, L]`: the response tokens at their own positions, -100 elsewhere, as a collator of the field makes them."""
    ids = batch.inputs["input_ids"]
    labels = torch.full_like(ids, -100)
    for index, row in enumerate(batch.rows):
        end = int(batch.inputs["attention_mask"][index].sum())
        labels[index, end - len(row.response_ids) : end] = torch.tensor(row.response_ids)
    return labels


def published_loss(student: nn.Module, assistant: nn.Module, batch: RowBatch) -> Tensor:
    """0.7 · CE + 0.3 · KL as the published code has them, from its description alone."""
    labels = labels_of(batch)
    mine, theirs = whole_logits(student, batch), whole_logits(assistant, batch).detach()
    ce = nn.functional.cross_entropy(mine[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    looked_at = labels.flatten() != 0
    log_q = (mine.flatten(0, 1)[looked_at].bfloat16() / T).log_softmax(-1)
    p = (theirs.flatten(0, 1)[looked_at].bfloat16() / T).softmax(-1)
    kl = nn.functional.kl_div(log_q, p, reduction="none").sum(-1).float().mean()
    return (1 - LAMBDA) * ce + LAMBDA * kl


ALL_BUT_MODELS = {"kl_everywhere": True, "no_temperature_scale": True, "kl_in_bf16": True, "batch_mean": True}


def test_all_quirks_together_equal_the_published_formula(embedded: Path, posts: list[Post]) -> None:
    student, assistant = models(embedded)
    batch = batch_of(embedded, posts, pad_end=True)
    found = objective_loss(student, assistant, batch, PublishedQuirks(**ALL_BUT_MODELS))
    expected = published_loss(student, assistant.model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    mine = torch.autograd.grad(found, list(student.parameters()), allow_unused=True)
    theirs = torch.autograd.grad(expected, list(student.parameters()), allow_unused=True)
    for a, b in zip(mine, theirs, strict=True):
        if b is not None:
            assert a is not None
            # Where a sum rounds otherwise, so may a number of eight bits that is made from it.
            assert float((a - b).norm()) <= 1e-3 * float(b.norm()) + 1e-9


def paper_parts(student: nn.Module, assistant: nn.Module, batch: RowBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of CE, sum of KL over response tokens, and the KL of every looked-at position, without T², in fp32."""
    labels = labels_of(batch)
    mine, theirs = whole_logits(student, batch), whole_logits(assistant, batch).detach()
    is_response = labels[:, 1:].flatten() != -100
    at_response = mine[:, :-1].flatten(0, 1)[is_response], theirs[:, :-1].flatten(0, 1)[is_response]
    ce = nn.functional.cross_entropy(at_response[0], labels[:, 1:].flatten()[is_response], reduction="sum")

    def kl(q: Tensor, p: Tensor) -> Tensor:
        return nn.functional.kl_div((q / T).log_softmax(-1), (p / T).softmax(-1), reduction="none").sum(-1)

    everywhere = labels.flatten() != 0
    return ce, kl(*at_response).sum(), kl(mine.flatten(0, 1)[everywhere], theirs.flatten(0, 1)[everywhere])


SWITCHED: dict[str, Callable[[float, float, Tensor, int], float]] = {
    "none": lambda ce, kl, every, tokens: 0.7 * ce / STEP_TOKENS + 0.3 * T**2 * kl / STEP_TOKENS,
    "no_temperature_scale": lambda ce, kl, every, tokens: 0.7 * ce / STEP_TOKENS + 0.3 * kl / STEP_TOKENS,
    "batch_mean": lambda ce, kl, every, tokens: 0.7 * ce / tokens + 0.3 * T**2 * kl / tokens,
    "kl_everywhere": lambda ce, kl, every, tokens: (
        0.7 * ce / STEP_TOKENS + 0.3 * T**2 * float(every.sum()) / STEP_TOKENS
    ),
}


@pytest.mark.parametrize("switch", SWITCHED)
def test_each_quirk_moves_the_number_as_its_formula_says(embedded: Path, posts: list[Post], switch: str) -> None:
    student, assistant = models(embedded)
    batch = batch_of(embedded, posts)
    quirks = PublishedQuirks(**({} if switch == "none" else {switch: True}))
    with torch.no_grad():
        found = float(objective_loss(student, assistant, batch, quirks))
        ce, kl, every = paper_parts(student, assistant.model, batch)
    expected = SWITCHED[switch](float(ce), float(kl), every, len(batch.targets))
    assert found == pytest.approx(expected, rel=1e-5)
    if switch != "none":
        usual = SWITCHED["none"](float(ce), float(kl), every, len(batch.targets))
        assert found != pytest.approx(usual, rel=1e-3)


def test_the_kl_in_bf16_is_off_by_what_eight_bits_lose(embedded: Path, posts: list[Post]) -> None:
    student, assistant = models(embedded)
    batch = batch_of(embedded, posts)
    with torch.no_grad():
        coarse = float(objective_loss(student, assistant, batch, PublishedQuirks(kl_in_bf16=True)))
        exact = float(objective_loss(student, assistant, batch, PublishedQuirks()))
    assert coarse != exact
    assert coarse == pytest.approx(exact, rel=0.05)


def test_a_token_with_id_0_is_not_looked_at(embedded: Path, posts: list[Post]) -> None:
    batch = batch_of(embedded, posts, pad_end=True)
    zeros = int((batch.targets == 0).sum())
    assert zeros == 3  # the pad token of the tiny vocabulary, which ends each target
    student, assistant = models(embedded)
    with torch.no_grad():
        _, _, every = paper_parts(student, assistant.model, batch)
    assert len(every) == batch.inputs["input_ids"].numel() - zeros


def test_the_assistant_stays_in_eval_mode_unless_the_quirk_is_on(embedded: Path) -> None:
    assert not OnlineAssistant(str(embedded / "models" / "assistant")).model.training
    assert OnlineAssistant(str(embedded / "models" / "assistant"), dropout=True).model.training


def stage(embedded: Path, **given: Any) -> StudentStage:
    pair = {"pretrained": str(embedded / "models" / "student"), "assistant": str(embedded / "models" / "assistant")}
    return StudentStage(**pair, stage_dir=embedded / "none", online_assistant=True, **given)  # type: ignore[arg-type]


def test_the_adapter_also_goes_on_the_vision_tower_s_mlps(embedded: Path) -> None:
    adapted = {}
    for on in (False, True):
        made = stage(embedded, lora=Lora(r=2), published=PublishedQuirks(vision_lora=on))
        made.configure_model()
        assert made.model is not None
        adapted[on] = {name for name, value in made.model.named_parameters() if value.requires_grad}
    further = adapted[True] - adapted[False]
    assert adapted[False] < adapted[True]
    assert all("visual" in name and ".mlp." in name for name in further)
    assert {name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for name in further} == {"gate_proj", "up_proj", "down_proj"}


def test_the_student_gets_as_many_rows_as_the_assistant(embedded: Path, tmp_path: Path) -> None:
    assistant = load_model(str(embedded / "models" / "assistant"))
    rows = int(assistant.get_output_embeddings().weight.shape[0])  # type: ignore[operator]
    assistant.resize_token_embeddings(rows + 128)  # type: ignore[operator]
    assistant.save_pretrained(tmp_path / "assistant")  # type: ignore[operator]
    load_processor(str(embedded / "models" / "assistant")).save_pretrained(tmp_path / "assistant")
    wide = StudentStage(
        str(embedded / "models" / "student"),
        embedded / "none",
        assistant=str(tmp_path / "assistant"),
        online_assistant=True,
        published=PublishedQuirks(resized_heads=True),
    )
    wide.configure_model()
    assert wide.model is not None
    assert wide.model.get_output_embeddings().weight.shape[0] == rows + 128  # type: ignore[operator, union-attr]


def test_the_pad_token_ends_a_target(embedded: Path, posts: list[Post]) -> None:
    usual, padded = batch_of(embedded, posts), batch_of(embedded, posts, pad_end=True)
    tokenizer = load_processor(str(embedded / "models" / "student")).tokenizer
    assert usual.rows[0].response_ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert padded.rows[0].response_ids[-1] == tokenizer.pad_token_id
    assert padded.rows[0].response_ids[:-1] == usual.rows[0].response_ids[:-1]
    assert stage(embedded, published=PublishedQuirks(pad_end=True)).encoder.end_of_turn == (tokenizer.pad_token_id,)


def test_true_switches_every_quirk_on_and_false_none(embedded: Path) -> None:
    on, off = PublishedQuirks.of(True), PublishedQuirks.of(False)
    assert [getattr(on, field.name) for field in fields(on)] == [True] * 8
    assert [getattr(off, field.name) for field in fields(off)] == [False] * 8
