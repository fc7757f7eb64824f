"""A model spread over two processes (FSDP2): the numbers, checkpoints and models of one process."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from mulcot.cli import main
from mulcot.models import load_model

pytestmark = pytest.mark.slow


def form(value: Any) -> Any:
    """What a value is made of, without its content."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, dict):
        return {key: form(each) for key, each in value.items()}
    return [form(each) for each in value] if isinstance(value, list | tuple) else type(value)


def shares(folder: Path) -> list[dict[str, int]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def spread(ranks: ModuleType, few_posts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage of the fit of `fitted`, spread over two processes, of which one failed in the second epoch."""
    out = tmp_path_factory.mktemp("spread")
    looking = ranks.callbacks(
        ("Dies", {"marker": str(out / "died"), "step": 8, "rank": 1}), ("Shares", {"out": str(out)})
    )
    command = ranks.fit(few_posts, "spread", *ranks.FIFTY, *ranks.SPREAD, *looking)
    shown = ranks.call(*command, code=None)
    assert "mulcot: error: post seven is wrong on rank 1" in shown
    assert time.time() - (out / "died").stat().st_mtime < 60
    ranks.call(*command)
    for each in shares(out):
        assert 0.45 * each["all"] < each["mine"] < 0.55 * each["all"]
        assert each["moments"] == 2 * each["mine"]
    return few_posts / "spread"


def test_every_step_is_that_of_one_process_also_after_it_went_on(ranks: ModuleType, fitted: Path, spread: Path) -> None:
    expected, found = ranks.losses(fitted), ranks.losses(spread)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert len(values) == ranks.STEPS
        assert found[name] == pytest.approx(values, rel=1e-5), name
    scores = [json.loads((stage / "metrics.json").read_text()) for stage in (fitted, spread)]
    for split in ("val", "test"):
        one, two = (score[split]["classification"] for score in scores)
        assert one["confusion"] == two["confusion"]
        assert one["ece"] == pytest.approx(two["ece"], abs=1e-5)
    assert scores[0]["trained_parameters"] == scores[1]["trained_parameters"]


def test_its_checkpoint_is_that_of_one_process(fitted: Path, spread: Path) -> None:
    one, two = (torch.load(stage / "checkpoints" / "last.ckpt", weights_only=True) for stage in (fitted, spread))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
        assert form(one[key]) == form(two[key]), key
    assert one["mulcot"].keys() == two["mulcot"].keys()
    for name, weight in one["state_dict"].items():
        assert torch.allclose(two["state_dict"][name], weight, rtol=0, atol=1e-5), name
    for number, moments in one["optimizer_states"][0]["state"].items():
        for name, value in moments.items():
            assert torch.allclose(two["optimizer_states"][0]["state"][number][name], value, atol=1e-5), (number, name)


def test_one_process_evaluates_resumes_and_exports_it(
    ranks: ModuleType, few_posts: Path, spread: Path, tmp_path: Path
) -> None:
    command = ranks.fit(few_posts, "spread", *ranks.FIFTY)
    assert main(["test", *command[1:]]) == 0
    fits, tests = (
        [json.loads(line) for line in (spread / name).read_text().splitlines()]
        for name in ("predictions.jsonl", "predictions-test.jsonl")
    )
    assert [answer["reply"] for answer in fits] == [answer["reply"] for answer in tests]
    assert main(["export", "--model", str(spread), "--out", str(tmp_path / "exported")]) == 0
    trained = load_model(str(spread / "checkpoints" / "best.ckpt"))
    for folder in (spread / "model", tmp_path / "exported"):
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        assert model.state_dict().keys() == trained.state_dict().keys()
        for name, weight in trained.state_dict().items():
            assert torch.equal(model.state_dict()[name], weight), name
    # The last checkpoint goes on in one process, as it would in any number.
    last = str(spread / "checkpoints" / "last.ckpt")
    further = ranks.fit(few_posts, "further", "--trainer.max_steps", 56, "--trainer.max_epochs", 10)
    assert main([*further, "--ckpt_path", last, "--allow_changed", "world,schedule"]) == 0
    taken = ranks.losses(few_posts / "further")["loss/total"]
    assert len(taken) == 6
    assert max(taken) < 1.2 * ranks.losses(spread)["loss/total"][-1]


@pytest.fixture
def untied(few_posts: Path) -> Path:
    """The student with a head of its own."""
    folder = few_posts / "models" / "untied"
    if not folder.exists():
        model = AutoModelForImageTextToText.from_pretrained(few_posts / "models" / "student")
        model.lm_head.weight = torch.nn.Parameter(1.1 * model.lm_head.weight.detach())
        for config in (model.config, model.config.text_config):
            config.tie_word_embeddings = False
        model.save_pretrained(folder)
        for path in (few_posts / "models" / "student").iterdir():
            if not (folder / path.name).exists():
                (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_adapters_hidden_states_and_processes_without_posts(
    ranks: ModuleType, few_posts: Path, untied: Path, tmp_path: Path
) -> None:
    """Three posts a step for four micro-batches: one process has none in some; tasks are apart in the paired layout."""
    common = [
        *("--trainer.max_epochs", 1, "--data.init_args.posts_per_step", 3, "--trainer.accumulate_grad_batches", 2),
        *("--data.init_args.layout", "paired", "--model.init_args.pretrained", untied),
        *("--model.init_args.lora", json.dumps({"r": 8, "alpha": 16, "dropout": 0.0})),
        *("--losses.hidden.class_path", "HiddenMSE", "--losses.hidden.init_args.layers", "null"),
        *("--model.init_args.activation_checkpointing", "true", "--held_out.enabled", "true"),
    ]
    assert main(ranks.fit(few_posts, "adapter_alone", *common)) == 0
    looking = ranks.callbacks(("Shares", {"out": str(tmp_path)}))
    ranks.call(*ranks.fit(few_posts, "adapter_spread", *common, *ranks.SPREAD, *looking))
    assert all(each["mine"] < 0.6 * each["all"] for each in shares(tmp_path))
    expected, found = ranks.losses(few_posts / "adapter_alone"), ranks.losses(few_posts / "adapter_spread")
    assert "loss/reasoning/hidden" in expected
    for name, values in expected.items():
        assert len(values) == 16
        assert found[name] == pytest.approx(values, rel=1e-4), name
    mine, theirs = ranks.weights(few_posts / "adapter_alone"), ranks.weights(few_posts / "adapter_spread")
    assert mine.keys() == theirs.keys()
    assert any(name.startswith("projections.") for name in mine)
    for name, weight in mine.items():
        assert torch.allclose(theirs[name], weight, rtol=0, atol=1e-5), name
    assert (few_posts / "adapter_spread" / "model" / "adapter_model.safetensors").is_file()
