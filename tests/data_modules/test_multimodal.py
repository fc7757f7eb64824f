"""What the data module says and refuses beside what the stages' tests show."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from data_modules import multimodal
from data_modules.multimodal import MultimodalDataModule
from data_modules.readers import Converted, Table
from mulcot.cli import main
from mulcot.models import load_processor
from mulcot.rows import RowEncoder
from mulcot.types import DEFAULT_LABELS, InputError, Task


@pytest.fixture
def table(tmp_path: Path) -> Table:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    texts = ["short", "a longer text of some words", "two words", "x" * 200, "three little words"] * 2
    rows = [
        {"id": f"p{number}", "text": text, "image": "a.png", "label": DEFAULT_LABELS[number % 3]}
        for number, text in enumerate(texts)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Table({"train": tmp_path / "train.jsonl"}, tmp_path)


@pytest.fixture(scope="module")
def encoder(embedded: Path) -> RowEncoder:
    return RowEncoder(load_processor(str(embedded / "models" / "student")), DEFAULT_LABELS)


def attached(data: MultimodalDataModule, encoder: RowEncoder, *tasks: Task, rank: int = 0, ranks: int = 1):
    """The data module with a stand-in for a trainer and a stage of these tasks."""
    stage = SimpleNamespace(
        encoder=encoder, tasks=tasks, predict_kind="responses", soft_label_fingerprint=None, pretrained="some/model"
    )
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=ranks, global_rank=rank, accumulate_grad_batches=1, lightning_module=stage
    )
    return data


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(multimodal, "MANY_POSTS", 9)
    return


@pytest.mark.usefixtures("few")
def test_a_large_source_is_told_of_until_it_is_converted(
    tmp_path: Path, table: Table, encoder: RowEncoder, embedded: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="data_modules.multimodal")
    data = attached(MultimodalDataModule(table), encoder, "classification")
    data.training_posts()
    assert [record.message for record in caplog.records] == [
        "train: reading 10 posts of Table took 0 s and keeps them in memory, at every start; `mulcot data convert` "
        "does it once, after which a run starts at once and takes next to no memory for them",
        "train: tokenising 10 posts, at every start; `mulcot data convert --model some/model` does it once",
    ]
    files = json.dumps({"train": str(tmp_path / "train.jsonl")})
    given = ["--posts", "Table", "--posts.files", files, "--posts.image_root", str(tmp_path)]
    model = ["--model", str(embedded / "models" / "student")]
    assert main(["data", "convert", *given, "--out", str(tmp_path / "plain")]) == 0
    assert main(["data", "convert", *given, "--out", str(tmp_path / "tokens"), *model]) == 0
    caplog.clear()
    attached(MultimodalDataModule(Converted(tmp_path / "plain")), encoder, "classification").training_posts()
    assert [record.message[:20] for record in caplog.records] == ["train: tokenising 10"]
    caplog.clear()
    attached(MultimodalDataModule(Converted(tmp_path / "tokens")), encoder, "classification").training_posts()
    assert caplog.records == []
    squeezed = RowEncoder(encoder.processor, DEFAULT_LABELS, (56, 56))
    attached(MultimodalDataModule(Converted(tmp_path / "tokens")), squeezed, "classification").training_posts()
    (record,) = caplog.records
    assert "are those of another model, label set (or order), picture size or version of mulcot" in record.message


@pytest.mark.parametrize("ranks", [1, 2, 3, 11])
def test_every_response_is_on_one_rank(table: Table, encoder: RowEncoder, ranks: int) -> None:
    found = []
    for rank in range(ranks):
        data = attached(
            MultimodalDataModule(table, eval_batch_size=4), encoder, "classification", rank=rank, ranks=ranks
        )
        (loader,) = data.predict_dataloader()
        assert len(loader) > 0  # Lightning leaves a rank without a batch out, and the others wait for it
        found += [(row.post.id, encoder.decode(row.response_ids)) for batch in loader for row in batch.rows]
    expected = [(f"p{number}", f'{{"Prediction": "{DEFAULT_LABELS[number % 3]}"}}') for number in range(10)]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("ranks", [1, 2, 10, 11])
def test_every_question_is_on_one_rank_and_no_rank_goes_without_while_there_are_any(
    table: Table, encoder: RowEncoder, ranks: int
) -> None:
    asked = []
    for rank in range(ranks):
        data = attached(MultimodalDataModule(table), encoder, "reasoning", rank=rank, ranks=ranks)
        data._user.predict_kind = "questions"
        (loader,) = data.predict_dataloader()
        asked.append([post.id for batch in loader for post in batch.posts])
        assert len(loader) == 1
    assert sorted(post_id for ids in asked for post_id in ids) == sorted(f"p{number}" for number in range(10))
    assert sorted(map(len, asked)) == {1: [10], 2: [5, 5], 10: [1] * 10, 11: [0, *[1] * 10]}[ranks]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_s_posts_do_not_depend_on_ranks_and_workers(table: Table, encoder: RowEncoder, ranks: int) -> None:
    def steps(ranks: int, workers: int) -> list[set[str]]:
        of_rank = []
        for rank in range(ranks):
            data = MultimodalDataModule(table, posts_per_step=4, length_pool=2, num_workers=workers)
            loader = attached(data, encoder, "classification", rank=rank, ranks=ranks).train_dataloader()
            loader.sampler.set_epoch(3)  # type: ignore[attr-defined]
            of_rank.append([batch.post_ids for batch in loader])
        return [set().union(*parts) for parts in zip(*of_rank, strict=True)]

    assert steps(ranks, 2 if ranks == 1 else 0) == steps(1, 0)
    assert sorted(map(len, steps(1, 0))) == [2, 4, 4]


def test_a_post_without_gold_label_cannot_be_trained_on(tmp_path: Path, table: Table, encoder: RowEncoder) -> None:
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"id": "q", "text": "t", "image": "a.png"}\n')
    with pytest.raises(InputError, match="post q has no gold label: training needs one"):
        attached(MultimodalDataModule(table), encoder, "classification").training_posts()


@pytest.mark.parametrize("name", ["posts_per_step", "length_pool", "eval_batch_size"])
def test_sizes_are_at_least_one(table: Table, name: str) -> None:
    with pytest.raises(InputError, match=f"data.init_args.{name} is 0; it must be 1 or more"):
        MultimodalDataModule(table, **{name: 0})
