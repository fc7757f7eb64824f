from pathlib import Path

import torch

from data_modules.readers import Table
from mulcot.models import head, hidden_states, load_model, load_processor
from mulcot.rows import RowCollator, RowEncoder
from mulcot.soft_labels import SoftLabelCache
from mulcot.types import DEFAULT_LABELS
from stages.soft_label_build import SoftLabelBuild


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
