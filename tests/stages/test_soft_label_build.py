import shutil
from pathlib import Path

import torch

from data_modules.readers import Table
from mulcot.models import Lora, head, hidden_states, load_model, load_processor, save_model
from mulcot.rows import RowCollator, RowEncoder
from mulcot.soft_labels import SoftLabelCache
from mulcot.types import DEFAULT_LABELS
from stages.soft_label_build import SoftLabelBuild, soft_label_fingerprint


@torch.no_grad()
def test_rows_of_the_head_beyond_the_vocabulary_take_no_part(embedded: Path, tmp_path: Path) -> None:
    folder = embedded / "posts" / "posts"
    post = Table({"train": folder / "train.jsonl"}, folder / "images").read("train")[0]
    model = load_model(str(embedded / "models" / "assistant")).eval()
    encoder = RowEncoder(load_processor(str(embedded / "models" / "assistant")), DEFAULT_LABELS)
    batch = RowCollator(encoder).batch([encoder.row(post, "classification", "fine")])
    rows = 300  # as if the tokenizer ended here and the head went on
    build = SoftLabelBuild(tmp_path, {}, k=400, temperature=2.0, rows=rows, rank=0)
    build.add(model, batch)
    build.writer.close()
    view = SoftLabelCache(tmp_path).get(post.id, "classification", batch.rows[0].response_ids)
    assert view.ids.sort(dim=-1).values.tolist() == [list(range(rows))] * len(batch.targets)
    logits = head(model)(hidden_states(model, batch.inputs).flatten(0, 1)[batch.positions])[:, :rows]
    torch.testing.assert_close(view.log_probs, logits.log_softmax(-1).gather(-1, view.ids), rtol=2e-3, atol=2e-3)


def test_the_fingerprint_of_an_adapter_changes_with_its_base(embedded: Path, tmp_path: Path) -> None:
    shutil.copytree(embedded / "models" / "assistant", tmp_path / "base")
    processor = load_processor(str(tmp_path / "base"))
    encoder = RowEncoder(processor, DEFAULT_LABELS)
    model = load_model(str(tmp_path / "base"), lora=Lora(r=2))
    save_model(model, processor, DEFAULT_LABELS, None, tmp_path / "adapter")
    before = soft_label_fingerprint(str(tmp_path / "adapter"), encoder)
    assert soft_label_fingerprint(str(tmp_path / "adapter"), encoder) == before
    with (tmp_path / "base" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    after = soft_label_fingerprint(str(tmp_path / "adapter"), encoder)
    assert {name for name in before if before[name] != after[name]} == {"assistant"}
