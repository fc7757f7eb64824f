from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_modules.readers import Table
from mulcot.models import base_model, head, hidden_states, load_model, load_processor
from mulcot.rows import PictureCache, RowCollator, RowEncoder
from mulcot.types import DEFAULT_LABELS, Post


@pytest.fixture(scope="module")
def encoder(embedded: Path) -> RowEncoder:
    return RowEncoder(load_processor(str(embedded / "models" / "student")), DEFAULT_LABELS)


@pytest.fixture(scope="module")
def model(embedded: Path) -> torch.nn.Module:
    return load_model(str(embedded / "models" / "student")).eval()


@pytest.fixture(scope="module")
def posts(embedded: Path) -> list[Post]:
    folder = embedded / "posts" / "posts"
    return Table({"train": folder / "train.jsonl"}, folder / "images").read("train")[:4]


@torch.no_grad()
def test_response_positions_give_the_loss_that_transformers_computes_itself(
    encoder: RowEncoder, model: torch.nn.Module, posts: list[Post]
) -> None:
    responses = ["fine", "a longer answer, of several words", "no", "grey clouds over a meadow"]
    rows = [encoder.row(post, "reasoning", text) for post, text in zip(posts, responses, strict=True)]
    batch = RowCollator(encoder).batch(rows)
    hidden = hidden_states(model, batch.inputs).flatten(0, 1)[batch.positions]
    ours = torch.nn.functional.cross_entropy(head(model)(hidden), batch.targets, reduction="none")
    ours_by_row = [part.mean() for part in ours.split([len(row.response_ids) for row in rows])]
    for row, mine in zip(rows, ours_by_row, strict=True):
        # One row at a time, unpadded, with the labels argument of transformers: an independent implementation.
        alone = RowCollator(encoder).batch([row])
        labels = alone.inputs["input_ids"].clone()
        labels[:, : -len(row.response_ids)] = -100
        theirs = base_model(model)(**alone.inputs, labels=labels).loss
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_on_either_side_changes_nothing(encoder: RowEncoder, model: torch.nn.Module, posts: list[Post]) -> None:
    rows = [encoder.row(post, "classification", "x" * 7 * (index + 1)) for index, post in enumerate(posts)]
    logits = []
    for side in ("left", "right"):
        batch = RowCollator(encoder).batch(rows, side)  # type: ignore[arg-type]
        logits.append(head(model)(hidden_states(model, batch.inputs).flatten(0, 1)[batch.positions]))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


def test_a_picture_that_two_rows_share_is_opened_once(
    encoder: RowEncoder, posts: list[Post], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = encoder.head
    monkeypatch.setattr(encoder, "head", lambda row: (opened.append(row.post.id), real(row))[1])
    collator = RowCollator(encoder)
    collator.batch([encoder.row(post, "reasoning", "a") for post in posts])
    collator.batch([encoder.row(post, "classification", "b") for post in posts])
    assert opened == [post.id for post in posts]


def test_pictures_of_the_same_content_are_one_and_the_others_are_not(
    encoder: RowEncoder, posts: list[Post], tmp_path: Path
) -> None:
    content = posts[0].image.read_bytes()
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(content)
    copies = [replace(posts[0], id=name, image=tmp_path / name) for name in ("a", "b")]
    cache = PictureCache(encoder)
    heads = [cache.head(encoder.row(post, "reasoning", "x")) for post in (*copies, posts[1], posts[0])]
    assert heads[0] is heads[1] is heads[3]
    assert heads[2] is not heads[0]
    cache.trim()  # nothing fits in no room, so the file is read anew
    (tmp_path / "b").write_bytes(posts[1].image.read_bytes())
    again = cache.head(encoder.row(copies[1], "reasoning", "x"))
    torch.testing.assert_close(again.vision["pixel_values"], heads[2].vision["pixel_values"])
