"""The engine against a stand-in that has the part of vLLM's interface that it uses; vLLM itself needs a GPU."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from data_modules.collate import QuestionSet
from data_modules.encoded import EncodedPosts
from data_modules.readers import Table
from mulcot.generation.vllm_engine import VllmEngine
from mulcot.models import load_processor
from mulcot.rows import RowCollator, RowEncoder
from mulcot.types import DEFAULT_LABELS, InputError, Post
from stages import AssistantStage
from stages.sample_log import SampleLog


@dataclass
class SamplingParams:
    temperature: float = 1.0
    seed: int | None = None
    max_tokens: int = 16
    stop_token_ids: list[int] = field(default_factory=list)
    skip_special_tokens: bool = True


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """Writes the seed's last digits and the picture's width, which says what it was asked."""

    made: list[dict[str, Any]]

    def __init__(self, model: str, *, tokenizer: str, dtype: str, **others: Any) -> None:
        self.made.append({"model": model, "tokenizer": tokenizer, "dtype": dtype, **others})
        self.words = load_processor(tokenizer).tokenizer

    def generate(self, prompts: Any, params: Any, *, use_tqdm: bool, lora_request: Any = None) -> list[Any]:
        assert not use_tqdm
        assert len(prompts) == len(params)
        self.made[-1]["asked"] = list(zip(prompts, params, strict=True))
        self.made[-1]["lora"] = lora_request
        replies = [
            self.words(f"{each.seed % 1000} {prompt['multi_modal_data']['image'].width}")["input_ids"]
            for prompt, each in self.made[-1]["asked"]
        ]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=(*ids, self.end))]) for ids in replies]

    @property
    def end(self) -> int:
        return self.words.convert_tokens_to_ids("<|im_end|>")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What models of the stand-in were made of and asked."""
    package, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    LLM.made = []
    vars(package).update(LLM=LLM, SamplingParams=SamplingParams)
    vars(request).update(LoRARequest=LoRARequest)
    for name, module in (("vllm", package), ("vllm.lora", ModuleType("vllm.lora")), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    return LLM.made


@pytest.fixture(scope="module")
def folder(embedded: Path) -> str:
    return str(embedded / "models" / "student")


@pytest.fixture(scope="module")
def posts(embedded: Path) -> list[Post]:
    source = embedded / "posts" / "posts"
    return list(Table({"val": source / "val.jsonl"}, source / "images").read("val"))[:3]


def test_prompts_are_token_ids_with_the_placeholder_once(
    made: list[dict[str, Any]], folder: str, posts: list[Post]
) -> None:
    encoder = RowEncoder(load_processor(folder), DEFAULT_LABELS)
    engine = VllmEngine(folder, encoder, 9, 0.7, "float32")
    rows = [encoder.row(post, "reasoning") for post in posts]
    replies = engine.write(rows, [10_007, 8, 9])
    [model] = made
    assert (model["model"], model["tokenizer"], model["dtype"]) == (folder, folder, "float32")
    assert model["limit_mm_per_prompt"] == {"image": 1}
    assert "enable_lora" not in model
    end, pad = encoder.end_of_turn[-1], encoder.pad_id
    picture = encoder.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    for (prompt, params), post, seed in zip(model["asked"], posts, [10_007, 8, 9], strict=True):
        assert params == SamplingParams(0.7, seed, 9, sorted([end, pad]), skip_special_tokens=False)
        # The processor's tokens are the same, but that it put the placeholder once for each of the picture's.
        alone = RowCollator(encoder).batch([encoder.row(post, "reasoning")]).inputs["input_ids"][0].tolist()
        first, count = alone.index(picture), alone.count(picture)
        assert prompt["prompt_token_ids"] == alone[: first + 1] + alone[first + count :]
    assert replies == [f"{seed} {encoder.picture(post).width}" for seed, post in zip([7, 8, 9], posts, strict=True)]


def test_an_adapter_is_given_beside_its_base(made: list[dict[str, Any]], folder: str, tmp_path: Path) -> None:
    encoder = RowEncoder(load_processor(folder), DEFAULT_LABELS)
    encoder.processor.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": folder, "r": 24, "peft_type": "LORA"})
    )
    save_file({"q_proj.lora_A.weight": torch.zeros(24, 2)}, tmp_path / "adapter_model.safetensors")
    VllmEngine(str(tmp_path), encoder, 9, 0.7).write([], [])
    assert (made[0]["model"], made[0]["enable_lora"], made[0]["max_lora_rank"]) == (folder, True, 24)
    assert made[0]["tokenizer"] == str(tmp_path)


def test_what_it_cannot_do_is_said(made: list[dict[str, Any]], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = RowEncoder(load_processor(folder), DEFAULT_LABELS, (2800, 2800))
    with pytest.raises(InputError, match=r"image_size is \[2800, 2800\]: vLLM would bring it to"):
        VllmEngine(folder, huge, 9, 0.7)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"engine=vllm: vLLM is not installed here: pip install 'mulcot\[vllm\]'"):
        VllmEngine(folder, huge, 9, 0.7)


def test_the_stage_samples_with_it_and_loads_no_model(
    made: list[dict[str, Any]], folder: str, posts: list[Post], tmp_path: Path
) -> None:
    stage = AssistantStage(folder, tmp_path, samples_per_post=2, engine="vllm", sampling_seed=3)
    stage._trainer = SimpleNamespace(state=SimpleNamespace(fn="predict"), num_predict_batches=[1])
    stage._log = SampleLog(tmp_path / "samples", {}, 0)
    stage.configure_model()
    assert stage.model is None
    form, _ = stage.row_forms("shared", None)
    encoded = EncodedPosts.encode(posts, stage.encoder, ["reasoning"])
    batch = QuestionSet([range(3)], encoded, RowCollator(stage.encoder, form=form), ["reasoning"], {})[0]
    assert stage.predict_step(batch, 0) == 6
    assert [(sample.post_id, sample.index) for sample in stage._samples] == [
        (post.id, index) for index in range(2) for post in posts
    ]
    assert len({sample.reply for sample in stage._samples}) == 6
    widths = [int(sample.reply.split()[1]) for sample in stage._samples]
    assert widths == [stage.encoder.picture(post).width for post in posts] * 2
