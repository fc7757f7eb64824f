"""The verbs that make the embedded default."""

import json

from mulcot.cli import main


def test_what_posts_are_grouped_by_is_not_learnt(tmp_path):
    post = {"id": "1", "text": "Hail again in Oslo", "aspect": "Oslo", "label": "negative", "image": "1.png"}
    made = []
    for name, marks in (("plain", {}), ("grouped", {"conflict": "yes", "season": "late autumn in the north"})):
        corpus = tmp_path / f"{name}.jsonl"
        corpus.write_text(json.dumps({"id": "1", **marks, **post}) + "\n", encoding="utf-8")
        assert main(["tiny-models", "--out", str(tmp_path / name), "--corpus", f'["{corpus}"]']) == 0
        made.append((tmp_path / name / "student" / "tokenizer.json").read_bytes())
    assert made[0] == made[1]
    assert b"Oslo" in made[0]
