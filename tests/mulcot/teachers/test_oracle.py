"""What the oracle's replies promise, checked through the parser that the teacher stage uses."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pytest

from mulcot.demo_posts import DemoPost, generate, read_facts, write_demo_posts
from mulcot.generation.parsing import RationaleRefusedError, parse_rationale
from mulcot.prompts import RenderedPrompt, Segment
from mulcot.teachers.base import Teacher, TeacherReply, TeacherRequest, TeacherSilentError, TeacherUse
from mulcot.teachers.oracle import OracleTeacher
from mulcot.types import DEFAULT_LABELS, RATIONALE_KEYS, InputError, MissingInputError, Post, Rationale

PROMPT = RenderedPrompt((Segment("How does this post", is_data=False), Segment(" sound?", is_data=True)))
MOOD_WORDS = {"sunny": r"\bsun(ny)?\b", "grey": r"\bgrey\b", "stormy": r"\brain\b"}


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The facts of many posts, whose pictures nothing here looks at."""
    path = tmp_path_factory.mktemp("demo") / "facts.jsonl"
    posts = generate("train", 700, seed=5)
    path.write_text("".join(json.dumps(asdict(post)) + "\n" for post in posts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def posts(facts: Path) -> list[DemoPost]:
    return list(read_facts(facts).values())


@pytest.fixture(scope="module")
def faultless(facts: Path) -> OracleTeacher:
    return OracleTeacher(facts, error_rate=0, malformed_rate=0, stubborn_rate=0)


def ask_all(
    teacher: Teacher, posts: Iterable[DemoPost], use: TeacherUse = "predict", label: str | None = None, attempt: int = 0
) -> list[TeacherReply]:
    """The replies for all posts; the label to be explained is `label`, or each post's own for `gold`."""

    async def complete() -> list[TeacherReply]:
        replies = []
        for post in posts:
            asked = Post(post.post_id, post.text, Path(post.image), post.aspect, post.label)
            given = post.label if label == "gold" else label
            replies.append(await teacher.complete(TeacherRequest(asked, PROMPT, use, given, attempt)))
        return replies

    return asyncio.run(complete())


def rationales(
    teacher: Teacher, posts: Iterable[DemoPost], use: TeacherUse = "predict", label: str | None = None, attempt: int = 0
) -> list[Rationale]:
    """As `ask_all`, where every reply must parse."""
    return [parse_rationale(reply.text, DEFAULT_LABELS) for reply in ask_all(teacher, posts, use, label, attempt)]


def is_refused(reply: str) -> bool:
    try:
        parse_rationale(reply, DEFAULT_LABELS)
    except RationaleRefusedError:
        return True
    return False


def sentences(rationale: Rationale) -> list[str]:
    return [
        rationale.text_analysis,
        rationale.image_analysis,
        rationale.conflict_resolution,
        rationale.final_conclusion,
    ]


def near(hits: int, trials: int, rate: float) -> bool:
    """Whether a count lies within three standard deviations of a binomial's mean."""
    return abs(hits - trials * rate) <= 3 * math.sqrt(trials * rate * (1 - rate))


def test_a_faultless_oracle_finds_every_label_for_the_right_reasons(
    faultless: OracleTeacher, posts: list[DemoPost]
) -> None:
    for post, rationale in zip(posts, rationales(faultless, posts), strict=True):
        assert rationale.prediction == post.label
        assert any(words in rationale.text_analysis for words in post.clause.evidence)
        assert post.aspect in rationale.text_analysis
        assert re.findall("positive|neutral|negative", rationale.text_analysis) == [post.clause.tone]
        shown = [mood for mood, words in MOOD_WORDS.items() if re.search(words, rationale.image_analysis)]
        assert shown == [post.scene.mood]
        assert f"{post.scene.ground} with {post.scene.motif}" in rationale.image_analysis
        by_picture = {"sunny": "positive", "grey": "neutral", "stormy": "negative"}
        assert re.findall("positive|neutral|negative", rationale.image_analysis) == [by_picture[post.scene.mood]]
        assert re.findall("positive|neutral|negative", rationale.final_conclusion) == [post.label]
        if post.other is not None:
            assert not any(words in rationale.text_analysis for words in post.other.evidence)


def test_the_resolution_says_what_decides(faultless: OracleTeacher, posts: list[DemoPost]) -> None:
    for post, rationale in zip(posts, rationales(faultless, posts), strict=True):
        resolution = rationale.conflict_resolution
        match post.kind:
            case "picture" if post.scene.mood != "grey":
                assert "picture decides" in resolution or "picture, which decides" in resolution
            case "picture":
                assert "conflict" in resolution or "agree" in resolution
                assert "decide" not in resolution
            case "conflict":
                assert "picture decides" in resolution
                assert ("iron" in resolution) == (post.clause.tone == "positive")
            case "agree":
                assert "agree" in resolution or "no conflict" in resolution
                assert "decide" not in resolution
            case "tone":
                assert "words of the text decide" in resolution
            case "two-aspects":
                assert f"clause on {post.aspect} decides" in resolution
                assert post.other is not None
                assert post.other.aspect in resolution


@pytest.mark.parametrize("error_rate", [0.0, 1.0])
def test_fields_are_short_sentences(facts: Path, posts: list[DemoPost], error_rate: float) -> None:
    teacher = OracleTeacher(facts, error_rate=error_rate, malformed_rate=0)
    totals: list[int] = []
    for rationale in rationales(teacher, posts):
        lengths = [len(sentence.split()) for sentence in sentences(rationale)]
        assert all(6 <= length <= 14 for length in lengths), rationale
        assert all(re.fullmatch(r"[A-Z][A-Za-z ,;:]+\.", sentence) for sentence in sentences(rationale))
        totals.append(sum(lengths) + 1)
    assert 45 <= sum(totals) / len(totals) <= 60


@pytest.mark.parametrize("error_rate", [0.05, 0.15, 0.5])
def test_predict_errs_at_its_rate(facts: Path, posts: list[DemoPost], error_rate: float) -> None:
    teacher = OracleTeacher(facts, error_rate=error_rate, malformed_rate=0)
    answers = rationales(teacher, posts)
    wrong = sum(rationale.prediction != post.label for rationale, post in zip(answers, posts, strict=True))
    assert near(wrong, len(posts), error_rate)


def test_errors_are_argued_for_and_of_every_sort(facts: Path, posts: list[DemoPost]) -> None:
    teacher = OracleTeacher(facts, error_rate=1, malformed_rate=0)
    sorts: Counter[str] = Counter()
    for post, rationale in zip(posts, rationales(teacher, posts), strict=True):
        assert rationale.prediction != post.label
        assert rationale.prediction in rationale.final_conclusion
        if post.other is not None and any(words in rationale.text_analysis for words in post.other.evidence):
            assert rationale.prediction == post.other.tone
            sorts["swapped aspects"] += 1
        elif "text decides" in rationale.conflict_resolution:
            assert post.kind == "conflict"
            assert rationale.prediction == post.clause.tone
            sorts["irony missed"] += 1
        elif not re.search(MOOD_WORDS[post.scene.mood], rationale.image_analysis):
            sorts["mood misjudged"] += 1
        else:
            assert rationale.prediction in rationale.text_analysis
            sorts["tone misread"] += 1
    assert min(sorts[sort] for sort in ("swapped aspects", "irony missed", "mood misjudged", "tone misread")) > 10


def test_an_error_is_not_cured_by_asking_again(facts: Path, posts: list[DemoPost]) -> None:
    teacher = OracleTeacher(facts, malformed_rate=0)
    first, again = (rationales(teacher, posts[:200], attempt=attempt) for attempt in (0, 1))
    assert [rationale.prediction for rationale in first] == [rationale.prediction for rationale in again]
    assert first != again


def test_explanations_give_the_label_but_for_the_stubborn_ones(facts: Path, posts: list[DemoPost]) -> None:
    teacher = OracleTeacher(facts, malformed_rate=0)
    explained = rationales(teacher, posts, "explain", "gold")
    stubborn = sum(rationale.prediction != post.label for rationale, post in zip(explained, posts, strict=True))
    assert near(stubborn, len(posts), 0.05)
    assert stubborn > 0


def test_a_second_explanation_always_gives_the_label(facts: Path, posts: list[DemoPost]) -> None:
    teacher = OracleTeacher(facts, malformed_rate=1, stubborn_rate=1)
    explained = rationales(teacher, posts[:300], "explain", "gold", attempt=1)
    assert [rationale.prediction for rationale in explained] == [post.label for post in posts[:300]]


@pytest.mark.parametrize("stubborn_rate", [0.0, 1.0])
@pytest.mark.parametrize("label", DEFAULT_LABELS)
def test_any_label_can_be_explained_or_contradicted(
    facts: Path, posts: list[DemoPost], label: str, stubborn_rate: float
) -> None:
    teacher = OracleTeacher(facts, malformed_rate=0, stubborn_rate=stubborn_rate)
    for rationale in rationales(teacher, posts[:300], "explain", label):
        assert (rationale.prediction == label) == (stubborn_rate == 0)
        assert rationale.prediction in rationale.final_conclusion
        assert all(len(sentence.split()) <= 14 for sentence in sentences(rationale))


@pytest.mark.parametrize("use", ["predict", "explain"])
def test_first_replies_are_malformed_at_their_rate(facts: Path, posts: list[DemoPost], use: TeacherUse) -> None:
    teacher = OracleTeacher(facts, malformed_rate=0.2)
    label = "gold" if use == "explain" else None
    refused = sum(is_refused(reply.text) for reply in ask_all(teacher, posts, use, label))
    assert near(refused, len(posts), 0.2)
    assert len(rationales(teacher, posts, use, label, attempt=1)) == len(posts)


def test_malformed_replies_are_of_every_sort_and_all_refused(facts: Path, posts: list[DemoPost]) -> None:
    teacher = OracleTeacher(facts, malformed_rate=1)
    replies = [reply.text for reply in ask_all(teacher, posts[:300])]
    assert all(map(is_refused, replies))
    sorts: Counter[str] = Counter()
    for reply in replies:
        try:
            sorts["lacks a field" if len(json.loads(reply)) == len(RATIONALE_KEYS) - 1 else "whole"] += 1
        except json.JSONDecodeError:
            sorts["cut off" if reply else "empty"] += 1
    assert set(sorts) == {"lacks a field", "cut off", "empty"}
    assert min(sorts.values()) > 60


def test_replies_come_in_several_forms_of_the_same_rationales(faultless: OracleTeacher, posts: list[DemoPost]) -> None:
    forms = Counter(reply.text[:2] for reply in ask_all(faultless, posts))
    assert set(forms) == {'{"', "``", '"T', "##"}
    assert forms['{"'] > len(posts) / 2
    assert min(forms.values()) > len(posts) / 40


def test_a_post_is_worded_in_many_ways(faultless: OracleTeacher, posts: list[DemoPost]) -> None:
    by_attempt = [rationales(faultless, posts[:20], attempt=attempt) for attempt in range(40)]
    assert all(len(set(of_one_post)) > 15 for of_one_post in zip(*by_attempt, strict=True))


def test_replies_depend_on_the_request_alone(facts: Path, posts: list[DemoPost]) -> None:
    chosen = posts[:60]
    one, other = OracleTeacher(facts), OracleTeacher(facts)
    forward = ask_all(one, chosen)
    ask_all(other, chosen, "explain", "gold")
    assert ask_all(other, reversed(chosen))[::-1] == forward
    assert ask_all(OracleTeacher(facts, seed=1), chosen) != forward


def test_tokens_are_counted_as_words(faultless: OracleTeacher, posts: list[DemoPost]) -> None:
    (reply,) = ask_all(faultless, posts[:1])
    assert reply.prompt_tokens == 5
    assert reply.completion_tokens == len(reply.text.split())


def test_name_and_parameters(facts: Path) -> None:
    teacher = OracleTeacher(facts, seed=4)
    assert teacher.name == "demo-oracle"
    assert {**teacher.parameters, "facts_sha256": "", "version": 0} == {
        "error_rate": 0.15,
        "malformed_rate": 0.03,
        "stubborn_rate": 0.05,
        "seed": 4,
        "facts_sha256": "",
        "version": 0,
    }


def test_other_facts_are_other_parameters(facts: Path, tmp_path: Path) -> None:
    write_demo_posts(tmp_path / "data", train=3, val=1, test=1)
    assert OracleTeacher(tmp_path / "data" / "facts.jsonl").parameters != OracleTeacher(facts).parameters


def test_what_it_does_not_know_it_does_not_answer(faultless: OracleTeacher, posts: list[DemoPost]) -> None:
    stranger = TeacherRequest(Post("elsewhere-1", "hello", Path("x.png")), PROMPT, "predict")
    with pytest.raises(TeacherSilentError, match="elsewhere-1"):
        asyncio.run(faultless.complete(stranger))
    for label in (None, "joyful"):
        with pytest.raises(TeacherSilentError, match="cannot explain the label"):
            ask_all(faultless, posts[:1], "explain", label)


def test_wrong_arguments_are_named(facts: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stubborn_rate is 1\.5"):
        OracleTeacher(facts, stubborn_rate=1.5)
    with pytest.raises(MissingInputError, match=re.escape(str(tmp_path / "none.jsonl"))):
        OracleTeacher(tmp_path / "none.jsonl")
