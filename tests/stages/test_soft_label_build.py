import copy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from data_modules.readers import Table
from mulcot.cli import main
from mulcot.models import Lora, RowSettings, head, hidden_states, load_model, load_processor, save_model
from mulcot.rows import MicroBatch, RowBatch, RowCollator, RowEncoder
from mulcot.soft_labels import SoftLabelCache, SoftLabelForm, prompt_digest
from mulcot.types import DEFAULT_LABELS, InputError
from stages.soft_label_build import SoftLabelBuild, build_line, soft_label_fingerprint


@torch.no_grad()
def test_rows_of_the_head_beyond_the_vocabulary_take_no_part(embedded: Path, tmp_path: Path) -> None:
    folder = embedded / "posts" / "posts"
    post = Table({"train": folder / "train.jsonl"}, folder / "images").read("train")[0]
    model = load_model(str(embedded / "models" / "assistant")).eval()
    encoder = RowEncoder(load_processor(str(embedded / "models" / "assistant")), DEFAULT_LABELS)
    batch = RowCollator(encoder).batch([encoder.row(post, "classification", "fine")])
    rows = 300  # as if the tokenizer ended here and the head went on
    build = SoftLabelBuild(tmp_path, {}, SoftLabelForm.top_k(rows, 2.0), rows=rows, rank=0)
    build.add(model, micro(batch))
    build.writer.close()
    view = SoftLabelCache(tmp_path).get(
        post.id, "classification", batch.rows[0].response_ids, prompt_digest(batch.rows[0])
    )
    assert view.ids.sort(dim=-1).values.tolist() == [list(range(rows))] * len(batch.targets)
    logits = head(model)(hidden_states(model, batch.inputs).flatten(0, 1)[batch.positions])[:, :rows]
    torch.testing.assert_close(view.log_probs, logits.log_softmax(-1).gather(-1, view.ids), rtol=2e-3, atol=2e-3)


def test_the_fingerprint_of_an_adapter_changes_with_its_base(embedded: Path, tmp_path: Path) -> None:
    shutil.copytree(embedded / "models" / "assistant", tmp_path / "base")
    processor = load_processor(str(tmp_path / "base"))
    encoder = RowEncoder(processor, DEFAULT_LABELS)
    model = load_model(str(tmp_path / "base"), lora=Lora(r=2))
    save_model(model, processor, RowSettings(), tmp_path / "adapter")
    before = soft_label_fingerprint(str(tmp_path / "adapter"), encoder)
    assert soft_label_fingerprint(str(tmp_path / "adapter"), encoder) == before
    with (tmp_path / "base" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    after = soft_label_fingerprint(str(tmp_path / "adapter"), encoder)
    assert {name for name in before if before[name] != after[name]} == {"assistant"}


def micro(batch: RowBatch) -> MicroBatch:
    """A batch of one task as the stage gets it."""
    return MicroBatch({batch.rows[0].task: batch}, {})


Rows = tuple[nn.Module, RowEncoder, RowBatch]


@pytest.fixture(scope="module")
def scored(embedded: Path) -> Rows:
    """A model and a batch of its rows, of both tasks' lengths."""
    folder = embedded / "posts" / "posts"
    posts = Table({"train": folder / "train.jsonl"}, folder / "images").read("train")[:6]
    model = load_model(str(embedded / "models" / "assistant")).eval()
    encoder = RowEncoder(load_processor(str(embedded / "models" / "assistant")), DEFAULT_LABELS)
    texts = ["fine", "a long reply, of more words than there are in a chunk of tokens " * 3, "bad"] * 2
    rows = [encoder.row(post, "reasoning", text) for post, text in zip(posts, texts, strict=True)]
    return model, encoder, RowCollator(encoder).batch(rows)


def build(folder: Path, form: SoftLabelForm, scored: Rows, batches: list[RowBatch], tokens: int = 8) -> SoftLabelCache:
    """A cache made with chunks of some tokens."""
    model, encoder, _ = scored
    rows = len(encoder.tokenizer)
    made = SoftLabelBuild(folder, {}, form, rows, rank=0, logits_bytes=4 * rows * tokens)
    for batch in batches:
        made.add(model, micro(batch))
    made.writer.close()
    return SoftLabelCache(folder)


FORMS = [SoftLabelForm.top_k(8, 2.0), SoftLabelForm.sampled(8, 2.0, seed=5)]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.kind)
def test_soft_labels_do_not_depend_on_the_batch_nor_on_the_chunk(
    tmp_path: Path, form: SoftLabelForm, scored: Rows
) -> None:
    _, encoder, batch = scored
    together = build(tmp_path / "together", form, scored, [batch, batch])
    alone = [RowCollator(encoder).batch([row]) for row in reversed(batch.rows)]
    apart = build(tmp_path / "apart", form, scored, alone)
    in_one = build(tmp_path / "in_one", form, scored, [batch], tokens=10_000)
    views = dict(together.items())
    assert len(views) == len(batch.rows)
    for other in (apart, in_one):
        assert other.tokens == together.tokens == len(batch.targets)
        for key, view in other.items():
            for name, value in view.tensors().items():
                torch.testing.assert_close(value, views[key].tensors()[name], rtol=2e-3, atol=2e-3)


def test_no_more_tokens_are_projected_at_once_than_the_budget_allows(tmp_path: Path, scored: Rows) -> None:
    seen: list[int] = []
    hook = head(scored[0]).register_forward_hook(lambda module, args, result: seen.append(len(result)))
    build(tmp_path, FORMS[0], scored, [scored[2]], tokens=8)
    hook.remove()
    assert sum(seen) == len(scored[2].targets)
    assert max(seen) == 8


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.kind)
def test_logits_that_are_no_numbers_name_post_and_task(tmp_path: Path, form: SoftLabelForm, scored: Rows) -> None:
    model, encoder, batch = scored
    model = copy.deepcopy(model)
    with torch.no_grad():
        head(model).weight[7, :] = torch.inf
    made = SoftLabelBuild(tmp_path, {}, form, len(encoder.tokenizer), rank=0)
    with pytest.raises(InputError, match=rf"post '{batch.rows[0].post.id}', task reasoning: the assistant's logits"):
        made.add(model, micro(batch))
    made.writer.flush()
    assert not list(tmp_path.iterdir())


def test_more_ids_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="soft_label_k is 301 and the assistant has 300 ids; give 300 or less"):
        SoftLabelBuild(tmp_path, {}, SoftLabelForm.top_k(301, 2.0), rows=300, rank=0)


@pytest.mark.parametrize("changed", ["prompts", "chat_template", "vocabulary", "pictures"])
def test_the_fingerprint_covers_what_rows_are_made_with(embedded: Path, changed: str) -> None:
    model = str(embedded / "models" / "assistant")
    before = soft_label_fingerprint(model, RowEncoder(load_processor(model), DEFAULT_LABELS))
    processor, labels, size = load_processor(model), DEFAULT_LABELS, None
    if changed == "prompts":
        labels = (*DEFAULT_LABELS, "mixed")
    elif changed == "chat_template":
        processor.chat_template += " "
    elif changed == "vocabulary":
        processor.tokenizer.add_tokens(["⟨new⟩"])
    else:
        size = (56, 56)
    after = soft_label_fingerprint(model, RowEncoder(processor, labels, size))
    assert {name for name in before if before[name] != after[name]} == {changed}


def test_another_text_or_picture_is_another_prompt(tmp_path: Path, scored: Rows) -> None:
    _, encoder, batch = scored
    post = batch.rows[0].post
    picture = tmp_path / "same.png"
    picture.write_bytes(post.image.read_bytes())
    before = prompt_digest(batch.rows[0])
    assert prompt_digest(encoder.row(replace(post, image=picture), "reasoning", "another reply")) == before
    picture.write_bytes(batch.rows[1].post.image.read_bytes())
    for changed in (replace(post, image=picture), replace(post, text=post.text + "!"), replace(post, aspect="else")):
        assert prompt_digest(encoder.row(changed, "reasoning", "fine")) != before
    assert prompt_digest(encoder.row(post, "classification", "fine")) != before


def test_a_finished_cache_is_told_of_in_one_line(tmp_path: Path, scored: Rows) -> None:
    for form, words in zip(FORMS, ("moved by rounding", "standard error"), strict=True):
        line = build_line(build(tmp_path / form.kind, form, scored, [scored[2]]))
        assert f"{len(scored[2].targets):,} tokens" in line
        assert "bytes a token; T=2: " in line
        assert "on 8 tokens and a near (uniform) student: KL " in line
        assert words in line
        assert "\n" not in line


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("soft_label_form", "half", "soft_label_form"),
        ("soft_label_temperature", "0", "soft_label_temperature of AssistantStage is 0.0; it must be above 0"),
        ("soft_label_temperature", "-1", "soft_label_temperature of AssistantStage is -1.0; it must be above 0"),
        ("soft_label_k", "0", "soft_label_k of AssistantStage is 0; it must be 1 or more"),
        ("soft_label_k", "999999", "model.init_args.soft_label_k is 999999 and the assistant has"),
    ],
)
def test_settings_that_are_not_possible_leave_one_line(
    embedded: Path, capsys: pytest.CaptureFixture[str], setting: str, value: str, message: str
) -> None:
    common = ["--run_dir", embedded, "--stage", "impossible", "--trainer.accelerator", "cpu",
              "--model.init_args.pretrained", embedded / "models" / "assistant", "--data.init_args.rationales", "[]",
              "--trainer.enable_progress_bar", "false"]  # fmt: skip
    command = ["predict", "--config", "soft_labels.yaml", *common, f"--model.init_args.{setting}", value]
    assert main([str(word) for word in command]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mulcot: error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (embedded / "impossible" / "cache").exists()
