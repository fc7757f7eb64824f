"""Rows that share their beginning give losses and gradients of rows apart, for every architecture that takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from mulcot.callbacks import CrossEntropy, ForwardKL
from mulcot.losses import TopK
from mulcot.models import (
    SHARED_MODELS,
    Passes,
    hidden_states,
    load_model,
    picture_features,
    row_form,
    shared_refusal,
)
from mulcot.rows import MicroBatch, RowCollator, RowEncoder, RowForm
from mulcot.types import DEFAULT_LABELS, InputError, Post, Task, prediction_json
from stages.objective import Objective
from stages.online_assistant import OnlineAssistant

LAMBDA, T = 0.3, 2.0
STEP_TOKENS: dict[Task, int] = {"reasoning": 400, "classification": 60}
FORMS = {
    "paired, each picture once": RowForm("paired", pictures_once=True),
    "shared": RowForm("shared"),
    "shared, each picture once": RowForm("shared", pictures_once=True),
    "shared, packed": RowForm("shared", row_tokens=900, pictures_once=True),
}
RATIONALES = ['{"Text_analysis": "a mild word"', '{"Text_analysis": "another', "Text"]


@pytest.fixture(scope="module")
def posts(tmp_path_factory: pytest.TempPathFactory) -> list[Post]:
    """Three posts; the first and the last have one picture, and all have texts of different length."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for name, size in (("first.png", (60, 80)), ("second.png", (120, 70))):
        pixels = torch.randint(0, 255, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / name)
    names = ("first.png", "second.png", "first.png")
    return [
        Post(f"post {number}", "an owl " * (3 * number + 1), folder / name, "owl", DEFAULT_LABELS[number])
        for number, name in enumerate(names)
    ]


@pytest.fixture(scope="module", params=SHARED_MODELS)
def trained(request: pytest.FixtureRequest, architectures: ModuleType) -> tuple[RowEncoder, nn.Module]:
    """The encoder and the model of an architecture."""
    processor, model = architectures.build(request.param)
    return RowEncoder(processor, DEFAULT_LABELS), model


@pytest.fixture(scope="module")
def assistant(trained: tuple[RowEncoder, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> OnlineAssistant:
    """Another model of the architecture, beside the student: its weights are the student's, shaken."""
    encoder, model = trained
    folder = tmp_path_factory.mktemp("assistant")
    model.save_pretrained(folder)  # type: ignore[operator]
    encoder.processor.save_pretrained(folder)
    beside = OnlineAssistant(str(folder))
    generator = torch.Generator().manual_seed(3)
    for parameter in beside.model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return beside


def rows_of(encoder: RowEncoder, posts: list[Post]) -> dict[Task, list[Any]]:
    """Two rationales a post, which begin alike, one of them twice the same, and the answer."""
    return {
        "reasoning": [
            encoder.row(post, "reasoning", RATIONALES[(number + index) % 3])
            for number, post in enumerate(posts)
            for index in range(2)
        ],
        "classification": [encoder.row(post, "classification", prediction_json(str(post.label))) for post in posts],
    }


def apart(model: nn.Module, encoder: RowEncoder, row: Any) -> Tensor:
    """The logits that predict a row's response, from transformers' own forward pass over this row alone."""
    inputs = RowCollator(encoder).batch([row]).inputs
    logits: Tensor = model(**inputs).logits[0]
    return logits[-len(row.response_ids) - 1 : -1]


def by_hand(model: nn.Module, beside: nn.Module, encoder: RowEncoder, rows: dict[Task, list[Any]]) -> Tensor:
    """The objective, row by row, in PyTorch's own losses."""
    total = torch.zeros(())
    for task, given in rows.items():
        for row in given:
            logits, targets = apart(model, encoder, row), torch.tensor(row.response_ids)
            with torch.no_grad():
                theirs = (apart(beside, encoder, row) / T).log_softmax(dim=-1)
            hard = functional.cross_entropy(logits, targets, reduction="sum")
            soft = functional.kl_div((logits / T).log_softmax(dim=-1), theirs, reduction="sum", log_target=True)
            total = total + ((1 - LAMBDA) * hard + LAMBDA * T**2 * soft) / STEP_TOKENS[task]
    return total


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss and its gradient of every parameter."""
    model.zero_grad()
    value = loss()
    value.backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return value.detach(), found


def objective_of(beside: OnlineAssistant | None) -> Objective:
    """The paper's two terms."""
    terms = [CrossEntropy(), ForwardKL(temperature=T)]
    for term, name in zip(terms, ("ce", "kl"), strict=True):
        term.name = name
    return Objective(terms, LAMBDA, beside)


def objective_of_labels() -> Objective:
    """The hard term alone."""
    term = CrossEntropy()
    term.name = "ce"
    return Objective([term])


def loss_of(objective: Objective, model: nn.Module, batch: MicroBatch) -> Tensor:
    """The objective over a micro-batch, as the stage computes it."""
    passes = Passes()
    losses = [
        objective.task_loss(model, task, rows, batch.step_tokens[task], passes=passes)
        for task, rows in batch.tasks.items()
    ]
    return torch.stack([loss.total for loss in losses]).sum()


def assert_same(mine: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]) -> None:
    """Loss and every gradient tensor, the norm of the difference over the norm, to 1e-5."""
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-5, atol=0)
    assert mine[1].keys() == theirs[1].keys()
    largest = max(float(gradient.norm()) for gradient in theirs[1].values())
    for name, gradient in theirs[1].items():
        # A bias of keys moves all scores of a query alike: its gradient is 0 but for rounding.
        scale = max(float(gradient.norm()), 1e-4 * largest)
        assert float((mine[1][name] - gradient).norm()) <= 1e-5 * scale, name


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradients_are_those_of_rows_apart(
    form: str, trained: tuple[RowEncoder, nn.Module], assistant: OnlineAssistant, posts: list[Post]
) -> None:
    encoder, model = trained
    rows = rows_of(encoder, posts)
    theirs = gradients(model, lambda: by_hand(model, assistant.model, encoder, rows))
    tasks = RowCollator(encoder, form=FORMS[form]).tasks(rows)
    batch = MicroBatch(tasks, STEP_TOKENS)
    mine = gradients(model, lambda: loss_of(objective_of(assistant), model, batch))
    assert_same(mine, theirs)


def test_a_cache_of_the_whole_distribution_does_the_same(
    trained: tuple[RowEncoder, nn.Module], assistant: OnlineAssistant, posts: list[Post]
) -> None:
    encoder, model = trained
    rows = rows_of(encoder, posts)
    theirs = gradients(model, lambda: by_hand(model, assistant.model, encoder, rows))

    @torch.no_grad()
    def view(row: Any) -> TopK:
        logits = apart(assistant.model, encoder, row)
        return TopK.from_logits(logits, k=logits.shape[-1], temperature=T)

    tasks = RowCollator(encoder, view, form=FORMS["shared, packed"]).tasks(rows)
    mine = gradients(model, lambda: loss_of(objective_of(None), model, MicroBatch(tasks, STEP_TOKENS)))
    assert_same(mine, theirs)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_other_attention_sees_the_same(
    attention: str, trained: tuple[RowEncoder, nn.Module], posts: list[Post], tmp_path: Path
) -> None:
    encoder, model = trained
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    other = load_model(str(tmp_path), attention=attention).eval()
    batch = RowCollator(encoder, form=FORMS["shared, packed"]).batch(rows_of(encoder, posts)["reasoning"])
    # Block masks are for compiled kernels; without a compiler flex_attention computes what they mean, word for word.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        mine, theirs = (hidden_states(each, batch.inputs).flatten(0, 1)[batch.ends] for each in (other, model))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_the_body_runs_once_and_the_vision_tower_once_for_each_picture(
    trained: tuple[RowEncoder, nn.Module], posts: list[Post]
) -> None:
    encoder, model = trained
    body: Any = model.model
    read: list[tuple[int, ...]] = []
    shown: list[int] = []
    hooks = [
        body.get_decoder().register_forward_pre_hook(
            lambda _, __, given: read.append(tuple(given["inputs_embeds"].shape[:2])), with_kwargs=True
        ),
        next(m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)).register_forward_pre_hook(
            lambda _, given: shown.append(len(given[0]))
        ),
    ]
    batch = MicroBatch(RowCollator(encoder, form=FORMS["shared, packed"]).tasks(rows_of(encoder, posts)), STEP_TOKENS)
    loss_of(objective_of_labels(), model, batch)
    for hook in hooks:
        hook.remove()
    assert len(read) == 1
    alone = RowCollator(encoder)
    patches = [len(alone.batch([encoder.row(post, "reasoning", "a")]).inputs["pixel_values"]) for post in posts[:2]]
    assert shown == [sum(patches)]  # posts 0 and 2 have one picture
    tokens = sum(int(rows.inputs["until"].shape[1]) for rows in list(batch.tasks.values())[:1])
    assert read[0][1] == tokens


def test_a_frozen_vision_tower_is_run_without_a_graph(trained: tuple[RowEncoder, nn.Module], posts: list[Post]) -> None:
    encoder, model = trained
    inputs = RowCollator(encoder, form=FORMS["shared, packed"]).batch(rows_of(encoder, posts)["reasoning"]).inputs
    language = {id(parameter) for parameter in model.model.get_decoder().parameters()}  # type: ignore[union-attr, operator]
    tower = [parameter for parameter in model.model.parameters() if id(parameter) not in language]  # type: ignore[union-attr]
    assert picture_features(model, inputs).pooler_output[0].requires_grad
    for parameter in tower:
        parameter.requires_grad_(False)
    try:
        assert not picture_features(model, inputs).pooler_output[0].requires_grad
    finally:
        for parameter in tower:
            parameter.requires_grad_(True)


def test_the_comparison_would_notice_positions_that_go_on_from_branch_to_branch(
    trained: tuple[RowEncoder, nn.Module], posts: list[Post]
) -> None:
    encoder, model = trained
    batch = RowCollator(encoder, form=FORMS["shared"]).batch(rows_of(encoder, posts)["reasoning"])
    running = torch.arange(batch.inputs["depths"].shape[1]).expand_as(batch.inputs["depths"])
    unmasked = torch.full_like(batch.inputs["until"], batch.inputs["until"].shape[1])
    with torch.no_grad():
        right = hidden_states(model, batch.inputs).flatten(0, 1)[batch.ends]
        for wrong in (batch.inputs | {"depths": running}, batch.inputs | {"until": unmasked}):
            found = hidden_states(model, wrong).flatten(0, 1)[batch.ends]
            assert float((found - right).norm() / right.norm()) > 1e-3


def test_a_model_that_is_not_known_to_take_it_is_refused(architectures: ModuleType, posts: list[Post]) -> None:
    processor, model = architectures.build("llava")
    encoder = RowEncoder(processor, DEFAULT_LABELS)
    inputs = RowCollator(encoder, form=RowForm("shared")).batch(rows_of(encoder, posts)["reasoning"]).inputs
    assert shared_refusal(model) == ""
    model.config.get_text_config().layer_types = ["full_attention", "sliding_attention", "full_attention"]
    assert row_form(model).layout == "paired"
    with pytest.raises(InputError, match=r"layers of sliding_attention.*data\.init_args\.layout=paired"):
        hidden_states(model, inputs)
    model.config.get_text_config().layer_types = None
    model.config.model_type = "florence"
    with pytest.raises(InputError, match="a florence is not known to compute the same"):
        hidden_states(model, inputs)
