"""What the data module says and refuses beside what the stages' tests show."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from data_modules import source
from data_modules.multimodal import MultimodalDataModule
from data_modules.readers import Converted, Table
from mulcot.cli import main
from mulcot.models import load_processor
from mulcot.prompts import get_prompt
from mulcot.rows import MicroBatch, RowEncoder, RowForm, TextRow
from mulcot.types import DEFAULT_LABELS, InputError, Rationale, RationaleRecord, Task


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
        encoder=encoder,
        tasks=tasks,
        predict_kind="responses",
        soft_label_fingerprint=None,
        pretrained="some/model",
        assistant_encoder=None,
        finished_posts=lambda: (),
        row_forms=lambda layout, row_tokens: (RowForm(layout, row_tokens, pictures_once=True), RowForm()),
    )
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=ranks, global_rank=rank, accumulate_grad_batches=1, lightning_module=stage
    )
    return data


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(source, "MANY_POSTS", 9)
    return


@pytest.mark.usefixtures("few")
def test_a_large_source_is_told_of_until_it_is_converted(
    tmp_path: Path, table: Table, encoder: RowEncoder, embedded: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="data_modules.source")
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


def rows_of(batch: MicroBatch) -> list[TextRow]:
    return [row for rows in batch.tasks.values() for row in rows.rows]


@pytest.mark.parametrize("ranks", [1, 2, 3, 11])
def test_every_response_is_on_one_rank(table: Table, encoder: RowEncoder, ranks: int) -> None:
    found = []
    for rank in range(ranks):
        data = attached(
            MultimodalDataModule(table, eval_batch_size=4), encoder, "classification", rank=rank, ranks=ranks
        )
        (loader,) = data.predict_dataloader()
        assert len(loader) > 0  # Lightning leaves a rank without a batch out, and the others wait for it
        found += [(row.post.id, encoder.decode(row.response_ids)) for batch in loader for row in rows_of(batch)]
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


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_seven_posts_are_each_on_one_rank_whatever_is_done_with_them(
    tmp_path: Path, table: Table, encoder: RowEncoder, ranks: int, size: int
) -> None:
    """Validation, test and all that `predict` does: soft labels, sampled rationales, a teacher's."""
    splits = {split: tmp_path / f"{split}.jsonl" for split in ("train", "val", "test")}
    for split in ("val", "test"):
        splits[split].write_text(splits["train"].read_text().replace('"id": "p', f'"id": "{split}'))
    found: dict[str, list[str]] = {}
    for rank in range(ranks):
        data = MultimodalDataModule(Table(splits, tmp_path), eval_batch_size=size, limit=7)
        attached(data, encoder, "reasoning", "classification", rank=rank, ranks=ranks)
        loaders = {"val": data.val_dataloader(), "test": data.test_dataloader()}
        for kind in ("responses", "questions", "posts"):
            data._user.predict_kind = kind
            loaders[kind] = data.predict_dataloader()[0]
        for name, loader in loaders.items():
            assert len(loader) > 0
            for batch in loader:
                posts = batch if name == "posts" else getattr(batch, "posts", None)
                ids = [row.post.id for row in rows_of(batch)] if posts is None else [post.id for post in posts]
                found.setdefault(name, []).extend(ids)
    assert found.keys() == {"val", "test", "responses", "questions", "posts"}
    for name, ids in found.items():
        first = name if name in splits else "p"
        assert sorted(ids) == [f"{first}{number}" for number in range(7)], name


def test_a_rank_without_posts_has_something_to_compute_where_all_must_take_part(
    table: Table, encoder: RowEncoder
) -> None:
    data = attached(MultimodalDataModule(table, posts_per_step=1), encoder, "classification", rank=1, ranks=2)
    batch = next(iter(data.train_dataloader()))
    assert batch.post_ids == ()
    assert batch.tasks == {}
    (rows,) = batch.rows_of_step().values()
    assert len(rows.targets) == 0
    assert rows.inputs["input_ids"].numel() > 0


def test_batches_whose_posts_are_all_finished_are_not_asked_again(table: Table, encoder: RowEncoder) -> None:
    data = attached(MultimodalDataModule(table, eval_batch_size=3), encoder, "reasoning")
    data._user.predict_kind = "questions"
    batches = [[post.id for post in batch.posts] for batch in data.predict_dataloader()[0]]
    assert [len(batch) for batch in batches] == [3, 3, 3, 1]
    finished = {*batches[0], *batches[2], batches[3][0], batches[1][0]}
    data._user.finished_posts = lambda: finished
    assert [[post.id for post in batch.posts] for batch in data.predict_dataloader()[0]] == [batches[1]]
    data._user.finished_posts = lambda: {*finished, *batches[1]}
    assert [len(batch.posts) for batch in data.predict_dataloader()[0]] == [0]


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


def rationales(path: Path, post_ids: list[str]) -> Path:
    """A file with a teacher's rationale of each post; post `<split><n>` has the n-th label."""
    lines = []
    for post_id in post_ids:
        label = DEFAULT_LABELS[int(post_id.lstrip("abcdefghijklmnopqrstuvwxyz")) % 3]
        rationale = Rationale(f"of {post_id}", "b", "c", "d", label)
        prompt_hash = get_prompt("msc", "teacher_predict").hash
        lines.append(RationaleRecord(post_id, rationale, "teacher-predicted", "t", prompt_hash).to_json() + "\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture
def splits(tmp_path: Path) -> Table:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        rows = [
            {"id": f"{split}{n}", "text": f"{split} {n}", "image": "a.png", "label": DEFAULT_LABELS[n % 3]}
            for n in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Table({split: tmp_path / f"{split}.jsonl" for split in ("train", "val", "test")}, tmp_path)


def test_references_are_found_by_post_whatever_their_files_are_called(
    tmp_path: Path, splits: Table, encoder: RowEncoder
) -> None:
    both = [
        rationales(tmp_path / "latest-val.jsonl", ["test1", "val0"]),
        rationales(tmp_path / "more.jsonl", ["val2", "test0"]),
    ]
    data = attached(MultimodalDataModule(splits, references=both), encoder, "reasoning", "classification")
    (batch,) = data.test_dataloader()
    pairs = zip(batch.posts, batch.references, strict=True)
    found = {post.id: record and record.rationale.text_analysis for post, record in pairs}
    assert found == {"test0": "of test0", "test1": "of test1", "test2": None}
    both.append(rationales(tmp_path / "wrong.jsonl", ["train0"]))
    data = attached(MultimodalDataModule(splits, references=both), encoder, "reasoning", "classification")
    with pytest.raises(InputError, match=r"wrong\.jsonl, line 1, field 'post_id': there is no post 'train0'"):
        data.test_dataloader()


def test_a_limit_takes_the_rationales_of_its_posts_alone(tmp_path: Path, splits: Table, encoder: RowEncoder) -> None:
    files = [rationales(tmp_path / "r.jsonl", ["train5", "train1", "train3", "train0"])]
    data = attached(MultimodalDataModule(splits, files, limit=2), encoder, "reasoning", "classification")
    posts = data.training_posts()
    assert [encoder.decode(posts.rationales[n])[19:28] for n in range(len(posts.rationales))] == [
        "of train0",
        "of train1",
    ]
    assert posts.first.tolist() == [0, 1, 2]


def test_a_split_of_which_no_post_is_left_is_an_error(tmp_path: Path, splits: Table) -> None:
    (tmp_path / "val.jsonl").write_text('{"id": "a", "text": "t", "image": "gone.png", "label": "positive"}\n')
    data = MultimodalDataModule(splits, on_bad_row="skip")
    with pytest.raises(InputError, match=r"val: no post of Table is left \(1 wrong rows were left out: image 1\)"):
        data.posts("val")


def test_a_second_epoch_tokenises_nothing(
    tmp_path: Path, splits: Table, encoder: RowEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    plain_ids = RowEncoder.plain_ids

    def counted(self: RowEncoder, text: str) -> list[int]:
        asked.append(text)
        return plain_ids(self, text)

    monkeypatch.setattr(RowEncoder, "plain_ids", counted)
    files = [rationales(tmp_path / "r.jsonl", ["train1", "train2"])]
    data = attached(MultimodalDataModule(splits, files), encoder, "reasoning", "classification")
    loader = data.train_dataloader()
    seen = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        seen.append(sum(len(batch.post_ids) for batch in loader))
        assert asked if epoch == 0 else not asked
        asked.clear()
    assert seen == [6, 6]


def test_a_picture_that_breaks_off_is_named_by_the_row_that_has_it(
    tmp_path: Path, splits: Table, encoder: RowEncoder
) -> None:
    Image.effect_noise((40, 30), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:600])
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    lines[3] = lines[3].replace("a.png", "cut.png")
    (tmp_path / "train.jsonl").write_text("\n" + "\n".join(lines))
    data = attached(MultimodalDataModule(splits), encoder, "classification")
    expected = rf"^{tmp_path}/train\.jsonl, line 5, field 'image' \(post 'train3'\): {tmp_path}/cut\.png: the picture"
    with pytest.raises(InputError, match=expected):
        list(data.train_dataloader())
