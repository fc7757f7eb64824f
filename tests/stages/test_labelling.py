"""Labelling that goes wrong, is stopped, is limited or filtered, and goes on."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jsonargparse import ArgumentParser
from rich.console import Console

from mulcot.locks import InUseError
from mulcot.teachers import (
    LabelStore,
    TeacherPausedError,
    TeacherReply,
    TeacherRequest,
    TeacherUnavailableError,
)
from mulcot.teachers.content_keys import idempotency_key
from mulcot.teachers.filters import Candidate, DuplicateFilter
from mulcot.teachers.limits import Budget, Prices
from mulcot.teachers.store_summary import reconcile
from mulcot.types import InputError, Post, Rationale, RationaleRecord
from stages import teacher as teacher_module
from stages.dialogue import Dialogue
from stages.labelling_progress import LabellingProgress
from stages.teacher import TeacherStage


def _beside(name: str) -> ModuleType:
    """The module of the tests beside this one; their folder is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


shared = _beside("test_teacher")
Scripted, good, lines, exports, predict = shared.Scripted, shared.good, shared.lines, shared.exports, shared.predict
converse, make_post, pytestmark = shared.converse, shared.make_post, shared.pytestmark
RIGHT, WRONG = good("positive"), good("negative")
Make = Callable[..., Post]


class Answers:
    """Answers every question rightly, in its own words, and counts; `before` may do something else first."""

    name = "answers"
    parameters: Mapping[str, str | int | float] = {}
    costs = False
    prices: Prices | None = None

    def __init__(self, before: Callable[[TeacherRequest, int], Any] | None = None) -> None:
        self.before = before
        self.requests: list[TeacherRequest] = []
        self.closed = 0

    async def complete(self, request: TeacherRequest) -> TeacherReply:
        self.requests.append(request)
        if self.before is not None:
            done = self.before(request, len(self.requests))
            if done is not None:
                return await done
        return self.reply(request)

    def reply(self, request: TeacherRequest) -> TeacherReply:
        text = f"on {request.post.text} as {request.sample}.{request.attempt}"
        return TeacherReply(good(request.post.label or "positive", text), 1000, 100)

    async def close(self) -> None:
        self.closed += 1


class Costly(Answers):
    costs = True
    prices = Prices(2.0, 10.0)


def many(make: Make, count: int) -> list[Post]:
    return [make(number) for number in range(count)]


def figures(folder: Path) -> Any:
    with LabelStore(folder / "labels.sqlite") as store:
        return reconcile(store)


# -- replies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finish", "text", "reason"),
    [
        ("length", RIGHT, "cut off at its greatest length"),
        ("filtered", RIGHT, "a content filter took the reply"),
        ("stop", RIGHT[:-1] + " " * 150 + "}", "loop of blanks"),
        ("stop", good("positive", "a" + "\n\t" * 60), "loop of blanks"),
        ("unknown", RIGHT[:-1] + "\n" * 5 + " " * 40 + "}", None),
    ],
)
def test_replies_that_were_cut_or_loop_are_refused(
    tmp_path: Path, make_post: Make, finish: Any, text: str, reason: str | None
) -> None:
    class Cut(Answers):
        def reply(self, request: TeacherRequest) -> TeacherReply:
            plain = good("positive", "as asked again")
            return TeacherReply(text, finish=finish) if request.attempt == 0 else TeacherReply(plain)

    (outcome,) = converse(tmp_path, Cut(), make_post(1))
    assert outcome.record is not None
    assert len(outcome.asks) == (1 if reason is None else 2)
    if reason is not None:
        with LabelStore(tmp_path / "labels.sqlite") as store:
            (row,) = store.read("SELECT outcome, reason FROM attempts WHERE attempt=0")
        assert row[0] == "refused"
        assert reason in row[1]


def test_idempotency_key_moves_on_only_with_the_attempt(tmp_path: Path, make_post: Make) -> None:
    script = {("1", "predict", 0): "noise", ("1", "predict", 1): WRONG, ("1", "explain", 0): RIGHT}
    teacher = Scripted(script)
    (outcome,) = converse(tmp_path, teacher, make_post(1))
    sent = [request.idempotency_key for request in teacher.requests]
    assert sent == [idempotency_key(ask.key, ask.attempt) for ask in outcome.asks]
    assert len(set(sent)) == 3


def test_an_unavailable_reply_fails_the_post_in_this_run_alone(tmp_path: Path, make_post: Make) -> None:
    class Down(Answers):
        async def complete(self, request: TeacherRequest) -> TeacherReply:
            if request.post.id == "1":
                self.requests.append(request)
                raise TeacherUnavailableError("503 eight times")
            return await super().complete(request)

    first = Down()
    metrics = predict(first, tmp_path, {"train": many(make_post, 3)})["train"]
    assert metrics["failed"] == {"unavailable": 1}
    assert metrics["accepted_predicted"] == 2
    (reject,) = lines(tmp_path / "rejects-train.jsonl")
    assert (reject["failure"], reject["reason"]) == ("unavailable", "no reply to predict this time: 503 eight times")
    assert (figures(tmp_path).unknown_outcome, figures(tmp_path).open_attempts) == (1, 1)
    second = Answers()
    assert predict(second, tmp_path, {"train": many(make_post, 3)})["train"]["failed"] == {}
    assert [request.post.id for request in second.requests] == ["1"]
    keys = {request.post.id: request.idempotency_key for request in first.requests}
    assert second.requests[0].idempotency_key == keys["1"]
    assert (figures(tmp_path).unknown_outcome, figures(tmp_path).open_attempts) == (1, 0)


# -- several rationales -------------------------------------------------------------------------------------------


def test_several_rationales_of_a_post(tmp_path: Path, make_post: Make) -> None:
    teacher = Answers()
    posts = {"train": [make_post(1), make_post(2)]}
    metrics = predict(teacher, tmp_path, posts, rationales_per_post=3)["train"]
    assert [
        (line["post_id"], line["rationale"]["Text_analysis"]) for line in lines(tmp_path / "rationales-train.jsonl")
    ] == [(post_id, f"on text {post_id} as {sample}.0") for post_id in ("1", "2") for sample in range(3)]
    assert (metrics["posts"], metrics["accepted_predicted"], metrics["requests"]) == (2, 6, 6)
    assert len({request.idempotency_key for request in teacher.requests}) == 6
    fewer = Answers()
    predict(fewer, tmp_path, posts, rationales_per_post=2)
    assert fewer.requests == [], "the first two of each are there"
    assert len(lines(tmp_path / "rationales-train.jsonl")) == 4


def test_equal_rationales_of_a_post_are_refused(tmp_path: Path, make_post: Make) -> None:
    class Same(Answers):
        def reply(self, request: TeacherRequest) -> TeacherReply:
            return TeacherReply(RIGHT)

    metrics = predict(Same(), tmp_path, {"train": [make_post(1)]}, rationales_per_post=2, max_reasks=1)["train"]
    assert (metrics["accepted_predicted"], metrics["failed"]) == (1, {"filtered": 1})
    (reject,) = lines(tmp_path / "rejects-train.jsonl")
    assert "the post has this very rationale already" in reject["reason"]


# -- filters ------------------------------------------------------------------------------------------------------


class NoFirst:
    """Refuses first attempts; lets threads meet."""

    def objection(self, candidate: Candidate) -> str | None:
        return "said at once" if candidate.rationale.text_analysis.endswith(".0") else None


def test_what_a_filter_refuses_is_asked_again(tmp_path: Path, make_post: Make) -> None:
    teacher = Answers()
    metrics = predict(teacher, tmp_path, {"train": many(make_post, 4)}, filters=[NoFirst()])["train"]
    assert (metrics["accepted_predicted"], metrics["requests"]) == (4, 8)
    assert {line["attempts"] for line in lines(tmp_path / "rationales-train.jsonl")} == {2}
    refused = predict(Answers(), tmp_path / "b", {"train": many(make_post, 2)}, filters=[NoFirst()], max_reasks=0)
    assert refused["train"]["failed"] == {"filtered": 2}
    assert refused["train"]["teacher_accuracy"] == 1.0, "its label was right"


def test_a_wrong_prediction_is_not_filtered_but_its_explanation_is(tmp_path: Path, make_post: Make) -> None:
    seen = []

    class Notes:
        def objection(self, candidate: Candidate) -> str | None:
            seen.append(candidate.rationale.prediction)
            return None

    script = {("1", "predict", 0): WRONG, ("1", "explain", 0): RIGHT}
    predict(Scripted(script), tmp_path, {"train": [make_post(1)]}, filters=[Notes()])
    assert seen == ["positive"]


def test_duplicates_come_out_the_same_in_another_order(tmp_path: Path, make_post: Make) -> None:
    class Repeats(Answers):
        def reply(self, request: TeacherRequest) -> TeacherReply:
            return TeacherReply(RIGHT if request.attempt == 0 else good("positive", request.post.text))

    posts = many(make_post, 6)
    predict(Repeats(), tmp_path, {"train": posts}, filters=[DuplicateFilter()])
    before = {line["post_id"]: line for line in lines(tmp_path / "rationales-train.jsonl")}
    assert sorted(line["attempts"] for line in before.values()) == [1, 2, 2, 2, 2, 2]
    again = Repeats()
    predict(again, tmp_path, {"train": posts[::-1]}, filters=[DuplicateFilter()])
    assert again.requests == []
    assert {line["post_id"]: line for line in lines(tmp_path / "rationales-train.jsonl")} == before


def test_filters_and_prices_are_written_in_yaml(tmp_path: Path) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(TeacherStage, "model")
    (tmp_path / "replies.json").write_text('[{"id": 1, "cot": "x"}]')
    teacher = {"class_path": "mulcot.teachers.RecordedTeacher", "init_args": {"path": str(tmp_path / "replies.json")}}
    filters = [
        {"class_path": "mulcot.teachers.filters.LengthFilter", "init_args": {"max_words": 9}},
        {"class_path": "mulcot.teachers.image_agreement.ImageAgreementFilter", "init_args": {"min_cosine": 0.25}},
    ]
    values = {"teacher": teacher, "stage_dir": str(tmp_path), "filters": filters, "max_usd": 3}
    config = parser.parse_object({"model": values | {"prices": {"prompt": 0.15, "completion": 0.6}}})
    stage = parser.instantiate_classes(config).model
    length, agreement = stage._rules.filters
    assert (length.max_words, agreement.min_cosine) == (9, 0.25)
    assert stage._limits == Budget(max_usd=3, prices=Prices(0.15, 0.6))


# -- stopping -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [TeacherPausedError("quota gone"), InputError("the key is wrong")])
def test_what_concerns_all_posts_stops_sending_and_keeps_what_is_under_way(
    tmp_path: Path, make_post: Make, error: InputError
) -> None:
    async def fails(all_there: asyncio.Event) -> TeacherReply:
        await all_there.wait()
        raise error

    async def slow(request: TeacherRequest, teacher: Answers, all_there: asyncio.Event) -> TeacherReply:
        if len(teacher.requests) == 4:
            all_there.set()
        await all_there.wait()
        for _ in range(20):
            await asyncio.sleep(0.005)
        return teacher.reply(request)

    there = asyncio.Event()
    teacher = Answers()
    teacher.before = lambda request, count: fails(there) if count == 2 else slow(request, teacher, there)
    posts = {"train": many(make_post, 40)}
    with pytest.raises(InputError) as raised:
        predict(teacher, tmp_path, posts, concurrency=4)
    assert raised.value is error
    assert len(teacher.requests) == 4, "nothing new was sent"
    assert teacher.closed == 1
    assert exports(tmp_path) == {}
    assert not (tmp_path / "metrics.json").exists()
    found = figures(tmp_path)
    assert (found.requests, found.replies, found.unknown_outcome, found.ended) == (4, 3, 1, False)
    rest = Answers()
    predict(rest, tmp_path, posts)
    assert len(rest.requests) == 37
    assert figures(tmp_path).ended


def test_a_full_disk_stops_the_run_and_the_same_command_goes_on(
    tmp_path: Path, make_post: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts = {"train": many(make_post, 30)}

    def fill_up(request: TeacherRequest, count: int) -> None:
        if count == 10:
            store = stages[0]._store
            store._db.execute(f"PRAGMA max_page_count={store._db.execute('PRAGMA page_count').fetchone()[0]}")

    class Long(Answers):
        def reply(self, request: TeacherRequest) -> TeacherReply:
            return replace(super().reply(request), text=good("positive", f"{request.post.text} " * 500))

    stages: list[TeacherStage] = []
    teacher = Long(fill_up)
    stages.append(TeacherStage(teacher, tmp_path, concurrency=2))
    with pytest.raises(InputError, match=r"labels\.sqlite: the label store cannot be written \(.*full\)"):
        shared.make_trainer().predict(stages[0], datamodule=shared.Posts(posts))
    assert len(teacher.requests) < 30
    rest = Long()
    metrics = predict(rest, tmp_path, posts)["train"]
    assert metrics["accepted_predicted"] == 30
    assert len(rest.requests) < 30


def test_a_second_ctrl_c_stops_now(tmp_path: Path, make_post: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = []

    async def hang() -> TeacherReply:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        raise AssertionError

    def interrupt(request: TeacherRequest, count: int) -> Any:
        if count == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return hang()

    drain = Dialogue.drain

    async def interrupted(self: Dialogue, seconds: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await drain(self, seconds)

    monkeypatch.setattr(Dialogue, "drain", interrupted)
    monkeypatch.setattr(teacher_module, "DRAIN_SECONDS", 300.0)
    teacher = Answers(interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    began = time.monotonic()
    try:
        with pytest.raises(SystemExit):
            predict(teacher, tmp_path, {"train": many(make_post, 20)}, concurrency=3)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 200, "it did not wait for the drain to end"
    assert len(teacher.requests) == 3
    assert cancelled == [True] * 3
    assert figures(tmp_path).unknown_outcome == 3


def test_a_store_in_use_is_refused_before_anything_is_sent(tmp_path: Path, make_post: Make) -> None:
    teacher = Answers()
    with LabelStore(tmp_path / "labels.sqlite"), pytest.raises(InUseError, match=f"process {os.getpid()} on "):
        predict(teacher, tmp_path, {"train": [make_post(1)]})
    assert teacher.requests == []
    assert predict(teacher, tmp_path, {"train": [make_post(1)]})["train"]["posts"] == 1


# -- the store outlives the data ----------------------------------------------------------------------------------


def test_added_edited_and_reordered_posts(tmp_path: Path, make_post: Make) -> None:
    posts = many(make_post, 50)
    predict(Answers(), tmp_path, {"train": posts})

    def new_requests(changed: list[Post]) -> int:
        teacher = Answers()
        metrics = predict(teacher, tmp_path, {"train": changed})["train"]
        assert metrics["accepted_predicted"] == len(changed)
        assert [line["post_id"] for line in lines(tmp_path / "rationales-train.jsonl")] == [post.id for post in changed]
        return len(teacher.requests)

    added = posts + [make_post(number) for number in range(50, 60)]
    assert new_requests(added) == 10
    edited = [replace(post, text=f"edited {post.id}") if int(post.id) % 20 == 7 else post for post in added]
    assert new_requests(edited) == 3
    assert new_requests(edited[::-1]) == 0


def test_conclusions_are_found_again_as_long_as_all_that_they_depend_on_is_the_same(
    tmp_path: Path, make_post: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts = {"train": many(make_post, 6)}
    script = {(str(number), "predict", 0): WRONG if number == 3 else RIGHT for number in range(6)}
    script |= {("3", "explain", 0): RIGHT, ("4", "predict", 0): "noise", ("4", "predict", 1): RIGHT}
    predict(Scripted(script), tmp_path, posts)
    before = exports(tmp_path)
    led: list[str] = []
    run = Dialogue.run
    monkeypatch.setattr(Dialogue, "run", lambda self, post: led.append(post.id) or run(self, post))
    predict(Scripted({}), tmp_path, posts)
    assert led == []
    assert exports(tmp_path) == before

    def led_with(changed: list[Post], **settings: Any) -> list[str]:
        led.clear()
        predict(Scripted({}), tmp_path, {"train": changed}, **settings)
        return sorted(led)

    first, *rest = posts["train"]
    assert led_with([replace(first, text="other"), *rest]) == ["0"]
    assert led_with([replace(first, label="negative"), *rest]) == ["0"]
    assert led_with([first, *rest], max_reasks=1) == [post.id for post in posts["train"]]
    assert led_with([first, *rest], filters=[NoFirst()]) == [post.id for post in posts["train"]]
    first.image.write_bytes(b"another picture")
    assert led_with([first, *rest]) == ["0"]
    with LabelStore(tmp_path / "labels.sqlite") as store:
        for key, attempt in store.read("SELECT key, attempt FROM accepted"):
            store.refuse(key, attempt, "a stricter parser")
    assert led_with(rest) == [post.id for post in rest], "rationales that were taken back are looked at again"


def test_another_version_of_the_prompts_is_refused_with_both_named(
    tmp_path: Path, make_post: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(Answers(), tmp_path, {"train": [make_post(1)]})
    with LabelStore(tmp_path / "labels.sqlite") as store:
        now = store.note("expect/the prompt msc_teacher_predict")
        store.set_expected("the prompt msc_teacher_predict", "0ld")
    teacher = Answers()
    with pytest.raises(InputError, match=rf"made with the prompt msc_teacher_predict 0ld, now it is {now}: every post"):
        predict(teacher, tmp_path, {"train": [make_post(1)]})
    assert teacher.requests == []
    predict(teacher, tmp_path, {"train": [make_post(2)]}, other_prompts=True)
    assert len(teacher.requests) == 1


def test_records_that_were_brought_in_are_taken_where_they_fit(tmp_path: Path, make_post: Make) -> None:
    def record(post_id: str, label: str) -> RationaleRecord:
        return RationaleRecord(
            post_id, Rationale("t", "i", "c", "f", label), "teacher-explained", "human", "h", 4, 5, 6
        )

    with LabelStore(tmp_path / "labels.sqlite") as store:
        store.bring_in([record("1", "positive"), record("2", "negative"), record("9", "positive")])
    teacher = Answers()
    metrics = predict(teacher, tmp_path, {"train": many(make_post, 4)})["train"]
    assert sorted(request.post.id for request in teacher.requests) == ["0", "2", "3"]
    assert (metrics["imported"], metrics["accepted_explained"], metrics["accepted_predicted"]) == (1, 1, 3)
    by_id = {line["post_id"]: line for line in lines(tmp_path / "rationales-train.jsonl")}
    assert RationaleRecord.from_dict(by_id["1"]) == record("1", "positive")
    assert by_id["2"]["model"] == "answers"


# -- limits and consent -------------------------------------------------------------------------------------------


def test_max_requests_is_never_exceeded_over_all_runs(tmp_path: Path, make_post: Make) -> None:
    posts = {"train": many(make_post, 20)}
    teacher = Answers()
    for limit in (7, 7, 12):
        with pytest.raises(TeacherPausedError, match=f"limit of {limit} requests is reached"):
            predict(teacher, tmp_path, posts, max_requests=limit, concurrency=3)
        # Those that were about to be sent when another one met the limit are not sent either.
        assert limit - 2 <= len(teacher.requests) <= limit
        assert figures(tmp_path).replies == figures(tmp_path).requests == len(teacher.requests)
        assert exports(tmp_path) == {}
    assert predict(teacher, tmp_path, posts, max_requests=20)["train"]["accepted_predicted"] == 20


def test_max_usd_is_exceeded_by_no_more_than_what_is_under_way(
    tmp_path: Path, make_post: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    each = Prices(2.0, 10.0).usd(1000, 100)
    teacher = Answers()
    with pytest.raises(TeacherPausedError, match=r"limit of \$0\.03 is reached"):
        predict(
            teacher, tmp_path, {"train": many(make_post, 40)}, max_usd=0.03, prices=Prices(2.0, 10.0), concurrency=4
        )
    spent = figures(tmp_path).usd
    assert spent == pytest.approx(len(teacher.requests) * each)
    assert 0.03 <= spent < 0.03 + 4 * each
    assert f"${spent:,.4f}" in capsys.readouterr().out


def test_consent_to_the_cost(
    tmp_path: Path, make_post: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    posts = {"train": [*many(make_post, 5), make_post(7, None)]}
    teacher = Costly()
    with pytest.raises(InputError, match=r"^5 questions have no reply yet: .* \$[\d.]+; there is no terminal .* --yes"):
        predict(teacher, tmp_path, posts)
    assert teacher.requests == []
    asked: list[Any] = []
    monkeypatch.setattr(teacher_module, "ask_consent", lambda expected, yes: asked.append(expected))
    predict(teacher, tmp_path, posts)
    assert len(teacher.requests) == 5
    predict(teacher, tmp_path, posts | {"val": [make_post(10)]})
    assert [(expected.questions, expected.requests) for expected in asked] == [(5, 6), (1, 1)]
    assert asked[1].prompt_tokens == 1000, "by experience"
    assert len(teacher.requests) == 6


def test_yes_sends_unasked_and_shows_the_estimate(
    tmp_path: Path, make_post: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = TeacherStage(Costly(), tmp_path)
    stage.yes = True
    shared.make_trainer().predict(stage, datamodule=shared.Posts({"train": many(make_post, 5)}))
    shown = capsys.readouterr()
    assert "5 questions have no reply yet: about 6 requests" in shown.err
    assert "over all runs: 5 requests, 5 replies, 5,000 tokens read, 500 written, $0.0150" in shown.out


def test_an_unreadable_picture_is_told_before_anything_is_paid_for(tmp_path: Path, make_post: Make) -> None:
    teacher = Costly()
    posts = [*many(make_post, 3), make_post(4, image=tmp_path / "gone.jpg")]
    with pytest.raises(InputError, match=r"post '4': cannot read its picture .*gone\.jpg"):
        predict(teacher, tmp_path, {"train": posts})
    assert teacher.requests == []


# -- progress -----------------------------------------------------------------------------------------------------


def test_progress_is_of_dialogues_that_ended(tmp_path: Path) -> None:
    now = [0.0]
    out = io.StringIO()
    budget = Budget(prices=Prices(2.0, 10.0), requests=100)
    progress = LabellingProgress(
        tmp_path / "progress.json", budget, 40, Console(file=out, width=200), clock=lambda: now[0]
    )
    for _ in range(10):
        now[0] += 1.0
        budget.take()
        budget.take()
        budget.spend(100_000, 0)
        progress.settled(1, 2)
    shown = out.getvalue().splitlines()
    assert shown[0] == "labelled 5/40 posts, 50% accepted, 1.0 posts/s, 2.0 requests/s, $1.00, 0:35 left"
    assert len(shown) == 2, "one line in five seconds"
    written = json.loads((tmp_path / "progress.json").read_text())
    assert written == {"phase": "label", "done": 10, "total": 40, "unit": "posts, 50% accepted, $2.00"}
    progress.expect(10)
    progress.close()
    assert out.getvalue().splitlines()[-1].startswith("labelled 10/10 posts")
    assert "left" not in out.getvalue().splitlines()[-1]


def test_the_stage_writes_its_progress(tmp_path: Path, make_post: Make, capsys: pytest.CaptureFixture[str]) -> None:
    stage = TeacherStage(Answers(), tmp_path)
    shared.make_trainer(enable_progress_bar=True).predict(stage, datamodule=shared.Posts({"train": many(make_post, 5)}))
    assert json.loads((tmp_path / "progress.json").read_text())["done"] == 5
    shown = capsys.readouterr()
    assert "labelled 5/5 posts, 100% accepted" in shown.err
    assert "Predicting" not in shown.out + shown.err
