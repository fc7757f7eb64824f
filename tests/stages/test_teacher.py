"""The dialogue with a teacher, post by post, and the stage that leads many of them at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from mulcot.prompts import get_prompt
from mulcot.teachers import LabelStore, RecordedTeacher, TeacherReply, TeacherRequest, TeacherSilentError
from mulcot.teachers.base import TeacherStoppedError
from mulcot.teachers.limits import Budget
from mulcot.types import DEFAULT_LABELS, InputError, Post, Rationale, RationaleRecord
from stages.dialogue import Dialogue
from stages.outcomes import Outcome, Rules
from stages.teacher import TeacherStage

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "twitter15"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's, about torch
]


def good(label: str, text: str = "t") -> str:
    return Rationale(text, "i", "c", "f", label).to_json()


Script = Mapping[tuple[str, str, int], str | BaseException]
"""Replies by post id, use and attempt."""


class Scripted:
    """Plays a script and notes what it was asked; silent where the script has nothing."""

    name = "scripted"
    parameters: Mapping[str, str | int | float] = {"seed": 1}

    def __init__(self, script: Script, during: Callable[[TeacherRequest], None] | None = None) -> None:
        self.script = script
        self.during = during
        self.asked: list[tuple[str, str, int]] = []
        self.requests: list[TeacherRequest] = []
        self.running = self.most_running = 0

    async def complete(self, request: TeacherRequest) -> TeacherReply:
        name = (request.post.id, request.use, request.attempt)
        self.asked.append(name)
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        # Later posts answer sooner, so that nothing can rely on replies coming in order.
        await asyncio.sleep(0.02 / (1 + int(request.post.id)))
        self.running -= 1
        if self.during is not None:
            self.during(request)
        reply = self.script.get(name, TeacherSilentError(f"nothing scripted for {name}"))
        if isinstance(reply, BaseException):
            raise reply
        return TeacherReply(reply, prompt_tokens=100, completion_tokens=10)


@pytest.fixture
def make_post(tmp_path: Path) -> Callable[..., Post]:
    def make(number: int, label: str | None = "positive", **changes: Any) -> Post:
        image = tmp_path / f"{number}.jpg"
        image.write_bytes(b"picture %d" % number)
        return Post(**{"id": str(number), "text": f"text {number}", "image": image, "label": label, **changes})

    return make


class Posts(LightningDataModule):
    """Loaders of posts, one for each split."""

    def __init__(self, splits: Mapping[str, Sequence[Post]], batch_size: int = 3) -> None:
        super().__init__()
        self.predict_splits = list(splits)
        self.posts = splits
        self.batch_size = batch_size

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        return [
            DataLoader(posts, batch_size=self.batch_size, collate_fn=list)  # type: ignore[arg-type]
            for posts in self.posts.values()
        ]


def make_trainer(**changes: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**{"accelerator": "cpu", "devices": 1, "logger": False, **quiet, **changes})


def predict(
    teacher: Any, folder: Path, splits: Mapping[str, Sequence[Post]], batch_size: int = 3, **settings: Any
) -> dict[str, Any]:
    """Runs the stage and gives back its metrics."""
    make_trainer().predict(TeacherStage(teacher, folder, **settings), datamodule=Posts(splits, batch_size))
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())["splits"]
    return metrics


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def exports(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.jsonl"))}


def converse(
    folder: Path, teacher: Any, *posts: Post, max_reasks: int = 1, accept: bool = False, **rules: Any
) -> list[Outcome]:
    """Leads the dialogues about some posts at once, without Lightning."""

    async def run(store: LabelStore) -> list[Outcome]:
        dialogue = Dialogue(teacher, store, Rules(DEFAULT_LABELS, max_reasks, accept, **rules), Budget())
        try:
            found = await asyncio.gather(*(dialogue.run(post) for post in posts))
        finally:
            await dialogue.drain(60)
        return [outcome for outcomes in found for outcome in outcomes]

    with LabelStore(folder / "labels.sqlite") as store:
        return asyncio.run(run(store))


# The table: gold label, accept_unlabelled, replies to predict, replies to explain -> source, kind of failure, reason,
# the label that the teacher found itself.
WRONG, RIGHT, NOISE = good("negative"), good("positive"), "I cannot say."
PRED, EXPL = "teacher-predicted", "teacher-explained"
TABLE = {
    "right at once": ("positive", False, [RIGHT], [], PRED, None, "", "positive"),
    "wrong, then explained": ("positive", False, [WRONG], [RIGHT], EXPL, None, "", "negative"),
    "malformed, then right": ("positive", False, [NOISE, RIGHT], [], PRED, None, "", "positive"),
    "malformed, then wrong, then explained": ("positive", False, [NOISE, WRONG], [RIGHT], EXPL, None, "", "negative"),
    "explained at the second time": ("positive", False, [WRONG], [NOISE, RIGHT], EXPL, None, "", "negative"),
    "first explanation contradicts": ("positive", False, [WRONG], [WRONG, RIGHT], EXPL, None, "", "negative"),
    "malformed too often": ("positive", False, [NOISE, NOISE], [], None, "malformed", "(re-ask 1) refused", None),
    "explanations malformed": (
        "positive", False, [WRONG], [NOISE, NOISE], None, "malformed", "explain (re-ask 1) refused", "negative",
    ),
    "explanations contradict": (
        "positive", False, [WRONG], [WRONG, WRONG], None, "contradicting",
        "explain refused: its Prediction is 'negative', not 'positive'", "negative",
    ),
    "silent": ("positive", False, [], [], None, "silent", "no reply to predict: nothing scripted", None),
    "silent on the re-ask": ("positive", False, [NOISE], [], None, "malformed", "no reply to predict (re-ask 1)", None),
    "no explanation": (
        "positive", False, [WRONG], [], None, "silent",
        "the teacher predicted 'negative' where the gold label is 'positive'; no reply to explain", "negative",
    ),
    "unlabelled, not accepted": (None, False, [RIGHT], [], None, "unlabelled", "no gold label", None),
    "unlabelled, accepted": (None, True, [WRONG], [], PRED, None, "", "negative"),
    "unlabelled, malformed": (None, True, [NOISE, NOISE], [], None, "malformed", "refused", None),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
@pytest.mark.parametrize("aspect", [None, "the aspect"])
def test_dialogue(tmp_path: Path, make_post: Callable[..., Post], case: str, aspect: str | None) -> None:
    gold, accept, predictions, explanations, source, failure, reason, found = TABLE[case]
    script = {("1", "predict", attempt): reply for attempt, reply in enumerate(predictions)}
    script |= {("1", "explain", attempt): reply for attempt, reply in enumerate(explanations)}
    teacher = Scripted(script)
    post = make_post(1, gold, aspect=aspect)
    (outcome,) = converse(tmp_path, teacher, post, accept=accept)
    assert outcome.failure == failure
    assert reason in outcome.reason
    assert outcome.first_prediction == found
    replies = [*predictions, *explanations]
    if failure == "unlabelled":
        assert teacher.asked == []
        return
    silent = 1 if "no reply" in outcome.reason else 0
    assert teacher.asked[: len(replies)] == list(script)
    assert len(teacher.asked) == len(replies) + silent == len(outcome.asks)
    assert outcome.last_reply == (replies[-1] if replies else "")
    if source is None:
        assert outcome.record is None
        return
    prompt = get_prompt(post.setting, "teacher_predict" if source == PRED else "teacher_explain")
    label = gold or "negative"
    assert outcome.record == RationaleRecord(
        "1", Rationale("t", "i", "c", "f", label), source, "scripted", prompt.hash,
        attempts=len(replies), prompt_tokens=100 * len(replies), completion_tokens=10 * len(replies),
    )  # fmt: skip


def test_only_an_explanation_is_told_the_gold_label(tmp_path: Path, make_post: Callable[..., Post]) -> None:
    teacher = Scripted({("1", "predict", 0): WRONG, ("1", "explain", 0): RIGHT})
    converse(tmp_path, teacher, make_post(1, "positive"))
    predicting, explaining = teacher.requests
    assert (predicting.use, predicting.label) == ("predict", None)
    assert (explaining.use, explaining.label) == ("explain", "positive")
    assert predicting.prompt != explaining.prompt


def test_attempt_is_stored_before_the_request_is_sent(tmp_path: Path, make_post: Callable[..., Post]) -> None:
    seen = []

    def look(request: TeacherRequest) -> None:
        db = sqlite3.connect(tmp_path / "labels.sqlite")
        query = "SELECT use, attempt, label, reply IS NULL FROM attempts WHERE use=? AND attempt=?"
        seen.extend(db.execute(query, (request.use, request.attempt)).fetchall())
        db.close()

    script = {("1", "predict", 0): NOISE, ("1", "predict", 1): WRONG, ("1", "explain", 0): RIGHT}
    converse(tmp_path, Scripted(script, look), make_post(1, "positive"))
    assert seen == [("predict", 0, None, 1), ("predict", 1, None, 1), ("explain", 0, "positive", 1)]
    with LabelStore(tmp_path / "labels.sqlite") as store:
        rows = store._db.execute("SELECT use, attempt, reply, prompt_tokens, completion_tokens, outcome FROM attempts")
        assert rows.fetchall() == [
            ("predict", 0, NOISE, 100, 10, "refused"),
            ("predict", 1, WRONG, 100, 10, "accepted"),
            ("explain", 0, RIGHT, 100, 10, "accepted"),
        ]
        assert store._db.execute("SELECT label FROM accepted ORDER BY label").fetchall() == [
            ("negative",),
            ("positive",),
        ]


def test_equal_questions_are_asked_once(tmp_path: Path, make_post: Callable[..., Post]) -> None:
    first = make_post(1, "positive")
    twin = Post("2", first.text, first.image, first.aspect, "negative")
    teacher = Scripted({("1", "predict", 0): RIGHT, ("2", "explain", 0): WRONG})
    outcomes = converse(tmp_path, teacher, first, twin)
    assert teacher.asked == [("1", "predict", 0), ("2", "explain", 0)]
    assert [outcome.record.source for outcome in outcomes if outcome.record] == [PRED, EXPL]
    assert [[ask.is_new for ask in outcome.asks] for outcome in outcomes] == [[True], [False, True]]
    metrics = predict(teacher, tmp_path, {"train": [first, twin]})["train"]
    assert (metrics["requests"], metrics["replayed"], metrics["prompt_tokens"]) == (0, 3, 200)
    assert metrics["teacher_accuracy"] == 0.5


def test_half_a_surrogate_pair_is_kept_as_a_replacement_character(
    tmp_path: Path, make_post: Callable[..., Post]
) -> None:
    teacher = Scripted({("1", "predict", 0): good("positive", "cut \ud83d"), ("2", "predict", 0): "\ud83d\ude00 no"})
    first, second = converse(tmp_path, teacher, make_post(1), make_post(2), max_reasks=0)
    assert first.record is not None
    assert first.record.rationale.text_analysis == "cut \ufffd"
    assert second.last_reply == "\U0001f600 no"


def test_what_the_user_gave_wrong_is_named(tmp_path: Path, make_post: Callable[..., Post]) -> None:
    with pytest.raises(InputError, match=r"post '1': its label 'sad' is none of positive, neutral, negative"):
        converse(tmp_path, Scripted({}), make_post(1, "sad"))
    with pytest.raises(InputError, match=r"post '1': cannot read its picture .*gone\.jpg: No such file"):
        converse(tmp_path, Scripted({}), make_post(1, image=tmp_path / "gone.jpg"))
    with pytest.raises(InputError, match="max_reasks: must be 0 or more, is -1"):
        converse(tmp_path, Scripted({}), max_reasks=-1)
    with pytest.raises(InputError, match="concurrency: must be 1 or more, is 0"):
        TeacherStage(Scripted({}), tmp_path, concurrency=0)


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the system has one: thousands of durable commits wait long for a busy disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def splits(make_post: Callable[..., Post]) -> dict[str, list[Post]]:
    labels = list(DEFAULT_LABELS)
    return {
        "train": [make_post(number, labels[number % 3]) for number in (5, 3, 9, 1, 7, 2, 8)],
        "val": [make_post(number, labels[number % 3]) for number in (20, 11)],
    }


def script_of(splits: Mapping[str, Sequence[Post]]) -> dict[tuple[str, str, int], str | BaseException]:
    """Post 3 is explained, 9 malformed, 8 re-asked, 11 contradicts; the others are right."""
    posts = {post.id: str(post.label) for split in splits.values() for post in split}
    script: dict[tuple[str, str, int], str | BaseException] = {
        (post_id, "predict", 0): good(label, f"on {post_id}") for post_id, label in posts.items()
    }
    script |= {("3", "predict", 0): good("negative"), ("3", "explain", 0): good(posts["3"])}
    script |= {("9", "predict", attempt): NOISE for attempt in range(3)}
    script |= {("8", "predict", 0): NOISE, ("8", "predict", 1): good(posts["8"])}
    wrong = good("neutral")
    script |= {("11", "predict", 0): wrong} | {("11", "explain", attempt): wrong for attempt in range(3)}
    return script


def test_stage_writes_files_in_the_order_of_the_posts(tmp_path: Path, splits: dict[str, list[Post]]) -> None:
    folder = tmp_path / "teacher"
    script = script_of(splits)
    metrics = predict(Scripted(script), folder, splits)
    train = lines(folder / "rationales-train.jsonl")
    assert [line["post_id"] for line in train] == ["5", "3", "1", "7", "2", "8"]
    assert [line["source"] for line in train] == [PRED, EXPL, PRED, PRED, PRED, PRED]
    assert [line["attempts"] for line in train] == [1, 2, 1, 1, 1, 2]
    labels = {post.id: post.label for post in splits["train"]}
    assert all(RationaleRecord.from_dict(line).rationale.prediction == labels[line["post_id"]] for line in train)
    assert [line["post_id"] for line in lines(folder / "rationales-val.jsonl")] == ["20"]
    (reject,) = lines(folder / "rejects-train.jsonl")
    assert (reject["post_id"], reject["failure"], reject["reply"]) == ("9", "malformed", NOISE)
    (reject,) = lines(folder / "rejects-val.jsonl")
    assert (reject["post_id"], reject["failure"]) == ("11", "contradicting")
    assert metrics["train"] == {
        "posts": 7, "accepted_predicted": 5, "accepted_explained": 1, "accepted_unlabelled": 0,
        "imported": 0, "failed": {"malformed": 1}, "requests": 11, "replayed": 0, "prompt_tokens": 1100,
        "completion_tokens": 110, "teacher_accuracy": 5 / 6,
    }  # fmt: skip
    assert metrics["val"]["failed"] == {"contradicting": 1}
    assert metrics["val"]["requests"] == 5


def test_second_run_asks_nothing_and_writes_the_same_files(tmp_path: Path, splits: dict[str, list[Post]]) -> None:
    folder = tmp_path / "teacher"
    script = script_of(splits)
    script[("20", "predict", 0)] = TeacherSilentError("refused to answer")
    first = predict(Scripted(script), folder, splits)
    before = exports(folder)
    again = Scripted({})
    second = predict(again, folder, splits, concurrency=1)
    assert again.asked == []
    assert exports(folder) == before
    assert len(before) == 4
    for split in splits:
        assert second[split]["requests"] == 0
        assert second[split]["replayed"] == first[split]["requests"]
        unchanged = first[split].keys() - {"requests", "replayed"}
        assert {name: second[split][name] for name in unchanged} == {name: first[split][name] for name in unchanged}


def test_new_posts_alone_are_asked(tmp_path: Path, splits: dict[str, list[Post]]) -> None:
    script = script_of(splits)
    predict(Scripted(script), tmp_path / "a", {"train": splits["train"][:4]})
    more = Scripted(script)
    predict(more, tmp_path / "a", splits)
    assert {post_id for post_id, _, _ in more.asked} == {"7", "2", "8", "20", "11"}
    predict(Scripted(script), tmp_path / "b", splits)
    assert exports(tmp_path / "a") == exports(tmp_path / "b")


def test_a_teacher_may_be_asked_in_the_words_that_students_are_trained_on(
    tmp_path: Path, make_post: Callable[..., Post]
) -> None:
    post = make_post(1, "positive")
    script = {("post-1", "predict", 0): good("negative"), ("post-1", "explain", 0): good("positive")}
    teacher = Scripted({(post.id, use, attempt): reply for (_, use, attempt), reply in script.items()})
    (outcome,) = converse(tmp_path, teacher, post, prompt="trained")
    asked = {request.use: request.prompt.text for request in teacher.requests}
    for use, prompt in (("predict", get_prompt("msc", "reasoning")), ("explain", get_prompt("msc", "teacher_explain"))):
        label = "positive" if use == "explain" else None
        assert asked[use] == prompt.render(post, DEFAULT_LABELS, label=label).text
    assert outcome.record is not None
    converse(tmp_path, teacher, post, prompt="teacher")
    assert teacher.asked.count((post.id, "predict", 0)) == 2, "a reply to other words is another reply"


def test_a_request_that_a_stopped_teacher_did_not_send_leaves_no_trace(
    tmp_path: Path, make_post: Callable[..., Post]
) -> None:
    class Waits:
        """Keeps requests waiting until it is stopped."""

        name = "waits"
        parameters: Mapping[str, str | int | float] = {"test": 1}

        def __init__(self) -> None:
            self.stopped = asyncio.Event()
            self.asked = 0

        def stop(self) -> None:
            self.stopped.set()

        async def complete(self, request: TeacherRequest) -> TeacherReply:
            self.asked += 1
            await self.stopped.wait()
            raise TeacherStoppedError

    async def run(store: LabelStore) -> None:
        teacher, budget = Waits(), Budget(max_requests=1)
        dialogue = Dialogue(teacher, store, Rules(DEFAULT_LABELS), budget)
        asked = asyncio.create_task(dialogue.run(make_post(1, "positive")))
        while not teacher.asked:
            await asyncio.sleep(0.001)
        dialogue.interrupt()
        await dialogue.drain(60)
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert budget.requests == 0
        assert store.read("SELECT * FROM attempts") == []

    with LabelStore(tmp_path / "labels.sqlite") as store:
        asyncio.run(run(store))


def test_an_error_stops_the_run_and_the_next_one_asks_for_the_rest(
    tmp_path: Path, splits: dict[str, list[Post]]
) -> None:
    folder = tmp_path / "teacher"
    broken = script_of(splits) | {("7", "predict", 0): ConnectionError("the line went dead")}
    first = Scripted(broken)
    threads = threading.active_count()
    with pytest.raises(ConnectionError, match=r"^the line went dead$"):
        predict(first, folder, splits, concurrency=2)
    assert threading.active_count() == threads
    assert exports(folder) == {}
    db = sqlite3.connect(folder / "labels.sqlite")
    kept = db.execute("SELECT count(*) FROM attempts WHERE reply IS NOT NULL").fetchone()[0]
    assert db.execute("SELECT count(*) FROM attempts WHERE reply IS NULL").fetchone() == (1,)
    db.close()
    assert kept == len(first.asked) - 1, "requests under way were waited for and their replies kept"

    second = Scripted(script_of(splits))
    predict(second, folder, splits)
    assert set(first.asked) & set(second.asked) == {("7", "predict", 0)}
    predict(Scripted(script_of(splits)), tmp_path / "whole", splits)
    assert exports(folder) == exports(tmp_path / "whole")


def test_an_error_in_a_later_post_stops_the_run_at_its_end(tmp_path: Path, splits: dict[str, list[Post]]) -> None:
    broken = script_of(splits) | {("11", "explain", 2): RuntimeError("late")}
    with pytest.raises(RuntimeError, match=r"^late$"):
        predict(Scripted(broken), tmp_path, splits)
    LabelStore(tmp_path / "labels.sqlite").close()


def test_an_error_in_the_data_closes_the_stage(tmp_path: Path, splits: dict[str, list[Post]]) -> None:
    class Torn(Sequence[Post]):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: Any) -> Any:
            if index > 3:
                raise OSError("torn")
            return splits["train"][index]

    with pytest.raises(OSError, match="torn"):
        predict(Scripted(script_of(splits)), tmp_path, {"train": Torn()})
    LabelStore(tmp_path / "labels.sqlite").close()


@pytest.mark.parametrize("concurrency", [1, 3, 100])
def test_concurrency_is_bounded_and_batches_are_no_barrier(
    tmp_path: Path, splits: dict[str, list[Post]], concurrency: int
) -> None:
    full = asyncio.Event()

    class WaitsForOthers(Scripted):
        """Answers nobody before as many as may are asking, however slowly a machine hands them over."""

        async def complete(self, request: TeacherRequest) -> TeacherReply:
            if self.running + 1 == min(concurrency, 9):
                full.set()
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            await asyncio.wait_for(full.wait(), timeout=60)
            self.running -= 1
            return await super().complete(request)

    teacher = WaitsForOthers(script_of(splits))
    predict(teacher, tmp_path, splits, concurrency=concurrency)
    assert teacher.most_running == min(concurrency, 9)


def test_first_batch_need_not_end_before_the_last_begins(tmp_path: Path, splits: dict[str, list[Post]]) -> None:
    seen_last = asyncio.Event()

    class Waits(Scripted):
        async def complete(self, request: TeacherRequest) -> TeacherReply:
            if request.post.id == "11":
                seen_last.set()
            if request.post.id == "5":
                await asyncio.wait_for(seen_last.wait(), timeout=10)
            return await super().complete(request)

    metrics = predict(Waits(script_of(splits)), tmp_path, splits, concurrency=2)
    assert metrics["train"]["accepted_predicted"] == 5


def test_unlabelled_posts(tmp_path: Path, make_post: Callable[..., Post]) -> None:
    posts = {"train": [make_post(1, None), make_post(2, "positive")]}
    script = {("1", "predict", 0): RIGHT, ("2", "predict", 0): RIGHT}
    refused = predict(Scripted(script), tmp_path / "a", posts)
    assert refused["train"]["failed"] == {"unlabelled": 1}
    assert refused["train"]["requests"] == 1
    accepted = predict(Scripted(script), tmp_path / "b", posts, accept_unlabelled=True)
    assert accepted["train"]["accepted_unlabelled"] == 1
    assert accepted["train"]["teacher_accuracy"] == 1.0
    assert lines(tmp_path / "b" / "rationales-train.jsonl")[0]["rationale"]["Prediction"] == "positive"


def test_loaders_without_a_data_module_take_the_usual_names(tmp_path: Path, make_post: Callable[..., Post]) -> None:
    stage = TeacherStage(Scripted({("1", "predict", 0): RIGHT}), tmp_path)
    make_trainer().predict(stage, dataloaders=DataLoader([make_post(1)], collate_fn=list))  # type: ignore[arg-type]
    assert list(exports(tmp_path)) == ["rationales-train.jsonl", "rejects-train.jsonl"]


def test_too_few_split_names(tmp_path: Path, splits: dict[str, list[Post]]) -> None:
    data = Posts(splits)
    data.predict_splits = ["train"]
    with pytest.raises(InputError, match="2 loaders of posts but only 1 split names: train"):
        make_trainer().predict(TeacherStage(Scripted({}), tmp_path), datamodule=data)


def test_reduced_precision_is_refused(tmp_path: Path, splits: dict[str, list[Post]]) -> None:
    with pytest.raises(InputError, match=r"trainer\.precision is 'bf16-true', must be '32-true'"):
        make_trainer(precision="bf16-true").predict(TeacherStage(Scripted({}), tmp_path), datamodule=Posts(splits))
    trainer = make_trainer(precision="bf16-mixed")
    trainer.predict(TeacherStage(Scripted(script_of(splits)), tmp_path), datamodule=Posts(splits))
    assert (tmp_path / "metrics.json").exists()


def test_stage_has_nothing_to_train(tmp_path: Path) -> None:
    stage = TeacherStage(Scripted({}), tmp_path)
    assert list(stage.parameters()) == []
    assert stage.state_dict() == {}


def test_teacher_is_chosen_by_class_path(tmp_path: Path) -> None:
    (tmp_path / "replies.json").write_text('[{"id": 1, "cot": "x"}]')
    parser = ArgumentParser()
    parser.add_class_arguments(TeacherStage, "model")
    teacher = {"class_path": "mulcot.teachers.RecordedTeacher", "init_args": {"path": str(tmp_path / "replies.json")}}
    config = parser.parse_object({"model": {"teacher": teacher, "stage_dir": str(tmp_path), "labels": ["yes", "no"]}})
    stage = parser.instantiate_classes(config).model
    assert isinstance(stage, TeacherStage)
    assert isinstance(stage.teacher, RecordedTeacher)
    parser.exit_on_error = False
    with pytest.raises(ArgumentError, match="does not implement protocol Teacher"):
        parser.parse_object({"model": {"teacher": {"class_path": "pathlib.Path"}, "stage_dir": str(tmp_path)}})


def test_ctrl_c_keeps_the_replies_under_way(tmp_path: Path, make_post: Callable[..., Post]) -> None:
    class Interrupted(Scripted):
        async def complete(self, request: TeacherRequest) -> TeacherReply:
            self.asked.append((request.post.id, request.use, request.attempt))
            if len(self.asked) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.2)
            return TeacherReply("paid for")

    teacher = Interrupted({})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(SystemExit):
            predict(teacher, tmp_path, {"train": [make_post(number) for number in range(40)]}, concurrency=3)
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from the first Ctrl-C on
    assert len(teacher.asked) == 3
    with LabelStore(tmp_path / "labels.sqlite") as store:
        rows = store._db.execute("SELECT attempt, reply, sent FROM attempts").fetchall()
    assert rows == [(0, "paid for", 1)] * 3
    assert exports(tmp_path) == {}


@pytest.mark.skipif(not (DATA / "val.json").exists(), reason="the Twitter-2015 sample is not beside the checkout")
def test_recorded_replies_of_twitter_2015(memory_folder: Path) -> None:
    rows = json.loads((DATA / "val.json").read_text(encoding="utf-8"))
    images = DATA / "Images"
    posts = [Post(str(row["id"]), row["text"], images / row["image_path"], row["aspect"], row["label"]) for row in rows]
    teacher = RecordedTeacher(DATA / "val.json", name="Qwen2.5-VL-72B")
    metrics = predict(teacher, memory_folder, {"val": posts}, batch_size=32)["val"]
    assert metrics["posts"] == 1122
    assert metrics["accepted_predicted"] == 1122 - 1 - 28
    assert metrics["accepted_explained"] == 0
    assert metrics["failed"] == {"malformed": 1, "silent": 28}
    assert metrics["requests"] == 1122 + 1 + 28
    assert metrics["teacher_accuracy"] == 1093 / 1121
    gold = {post.id: post.label for post in posts}
    accepted = lines(memory_folder / "rationales-val.jsonl")
    rejects = lines(memory_folder / "rejects-val.jsonl")
    assert len(rejects) == 29
    assert all(reject["reason"] and reject["reply"] for reject in rejects)
    assert [reject["post_id"] for reject in rejects if reject["failure"] == "malformed"] == ["5149"]
    left_out = {reject["post_id"] for reject in rejects}
    assert [line["post_id"] for line in accepted] == [post_id for post_id in gold if post_id not in left_out]
    assert all(line["rationale"]["Prediction"] == gold[line["post_id"]] for line in accepted)
    before = exports(memory_folder)
    assert predict(teacher, memory_folder, {"val": posts}, batch_size=32)["val"]["requests"] == 0
    assert exports(memory_folder) == before
