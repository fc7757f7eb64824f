from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from mulcot.models import Lora, base_model, find_model, load_model
from mulcot.models.loading import vision_parameters
from mulcot.models.tiny import SIZES, SPECIAL_TOKENS, build_pair, train_tokenizer
from mulcot.rows import vocabulary_digest
from mulcot.types import InputError, MissingInputError

TEXTS = ["the sun shines over the harbour", '{"Prediction": "positive"}'] * 20


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    build_pair(folder, TEXTS, vocab_size=400, max_pixels=56 * 56, seed=0)
    return folder


def test_the_pair_shares_a_tokenizer_and_differs_in_size(pair: Path) -> None:
    digests = {vocabulary_digest(AutoTokenizer.from_pretrained(pair / role)) for role in SIZES}
    assert len(digests) == 1
    sizes = {role: sum(p.numel() for p in load_model(str(pair / role)).parameters()) for role in SIZES}
    assert sizes["assistant"] > 1.5 * sizes["student"]


def test_the_same_seed_builds_the_same_weights(pair: Path, tmp_path: Path) -> None:
    build_pair(tmp_path, TEXTS, vocab_size=400, max_pixels=56 * 56, seed=0)
    for role in SIZES:
        assert (tmp_path / role / "model.safetensors").read_bytes() == (pair / role / "model.safetensors").read_bytes()


@pytest.mark.parametrize("text", ["the sun", "Größe 🎉", "مرحبا", "tab\tand\nline", "a  b", "12345", "\x00"])
def test_the_tokenizer_writes_any_text_back(pair: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pair / "student")
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_saved_tokenizer_is_the_trained_one(pair: Path) -> None:
    trained, saved = train_tokenizer(TEXTS, 400), AutoTokenizer.from_pretrained(pair / "student")
    text = "the sun shines <|im_end|> over 12 harbours's <|image_pad|>!"
    assert saved(text)["input_ids"] == trained(text)["input_ids"]
    assert saved.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))


def test_an_adapter_trains_the_language_model_alone(pair: Path) -> None:
    model = load_model(str(pair / "student"), lora=Lora(r=2, alpha=4, targets=["q_proj", "down_proj"]))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    layers = SIZES["student"].layers
    assert len(trained) == layers * 2 * 2  # two targets, two matrices each
    assert all("lora_" in name and "language_model" in name for name in trained)
    # r * (inputs + outputs) of each layer's query and down projection.
    size = SIZES["student"]
    expected = layers * 2 * ((size.hidden + size.hidden) + (size.mlp + size.hidden))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


def test_an_adapter_stays_in_fp32_on_a_bf16_base(pair: Path) -> None:
    model = load_model(str(pair / "student"), lora=Lora(r=2), dtype="bfloat16")
    types = {parameter.requires_grad: parameter.dtype for parameter in model.parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}


def test_freezing_the_vision_tower_freezes_nothing_else(pair: Path) -> None:
    model = load_model(str(pair / "student"), freeze_vision=True)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if ".visual." in name}
    assert len(frozen) == len(vision_parameters(base_model(model)))


def test_a_missing_model_names_the_commands_that_make_one(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"nowhere holds no model: `mulcot fit"):
        find_model(str(tmp_path / "nowhere"))


def test_an_unfinished_stage_is_no_model(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "stage" / "model").mkdir(parents=True)
    with pytest.raises(MissingInputError, match="not finished"):
        find_model(str(tmp_path / "stage"))


def test_a_hub_name_is_passed_on() -> None:
    assert find_model("Qwen/Qwen2.5-VL-3B-Instruct").name == "Qwen/Qwen2.5-VL-3B-Instruct"


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="not written by mulcot"):
        find_model(str(tmp_path / "x.ckpt"))
