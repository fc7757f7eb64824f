"""Costs: what the teacher's store says, with prices that it noted."""

import pytest

from mulcot.report import collect
from mulcot.teachers.base import TeacherReply
from mulcot.teachers.limits import Prices
from mulcot.teachers.store import LabelStore
from mulcot.teachers.store_summary import note_prices


def test_requests_tokens_and_money_come_from_the_store(hand_run):
    folder = hand_run.teacher()
    with LabelStore(folder / "labels.sqlite") as store:
        for number, tokens in enumerate(((1000, 200), (3000, 300))):
            store.begin(f"key{number}", 0, "predict", None, "big")
            store.record_reply(f"key{number}", 0, TeacherReply("...", *tokens, "stop"))
        store.begin("key2", 0, "predict", None, "big")
        note_prices(store, "big", Prices(0.5, 2.0))
    costs = collect(hand_run.folder)["costs"]
    # In dollars for a million tokens: 4000 read at 0.5, 500 written at 2.
    assert costs == {
        "wall_seconds": 4.25,
        "teacher": {
            "stage": "teacher",
            "requests": 3,
            "replies": 2,
            "prompt_tokens": 4000,
            "completion_tokens": 500,
            "usd": pytest.approx(0.003),
        },
    }


def test_a_teacher_without_a_store_tells_its_requests(hand_run):
    hand_run.teacher()
    teacher = collect(hand_run.folder)["costs"]["teacher"]
    assert (teacher["requests"], teacher["prompt_tokens"], teacher["usd"]) == (12, None, None)


def test_a_run_without_a_teacher(hand_run):
    hand_run.model("student", "student, distilled", 0, hand_run.gold)
    assert collect(hand_run.folder)["costs"] == {"wall_seconds": 1.0, "teacher": None}


def test_a_store_in_use_or_damaged_is_noted(hand_run):
    path = hand_run.teacher() / "labels.sqlite"
    with LabelStore(path):
        result = collect(hand_run.folder)
    assert result["costs"]["teacher"] is None
    assert result["notes"][0].startswith(f"costs of teacher are not known: {path}: the label store is in use: ")
    path.write_bytes(b"no database at all, and long enough to be read as one" * 40)
    assert f"{path}: no usable label store" in collect(hand_run.folder)["notes"][0]
