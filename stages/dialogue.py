"""The dialogue with a teacher about one post: predict, check against gold, explain when wrong, check again."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mulcot.generation.parsing import RationaleRefusedError, parse_rationale
from mulcot.prompts import get_prompt
from mulcot.teachers.base import Teacher, TeacherReply, TeacherRequest, TeacherSilentError, TeacherUse
from mulcot.teachers.store import LabelStore, content_key
from mulcot.types import InputError, Post, Rationale, RationaleRecord, Source

Failure = Literal["unlabelled", "malformed", "contradicting", "silent"]
"""Why a post has no rationale: no gold label; replies that do not parse; explanations whose own Prediction is not the
label that was given; no reply."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One question of a dialogue, answered or not."""

    key: str
    """Its content key."""
    attempt: int
    """0, then 1 for the first re-ask, ..."""
    is_new: bool
    """True when a request was sent for it now, False when the store, or an equal post of this run, had the reply."""
    prompt_tokens: int = 0
    """Tokens read for it, whenever that was."""
    completion_tokens: int = 0
    """Tokens written for it, whenever that was."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the dialogue about one post ended."""

    post: Post
    """The post."""
    record: RationaleRecord | None
    """The accepted rationale; None when there is none."""
    failure: Failure | None
    """The kind of failure; None when a rationale was accepted."""
    reason: str
    """The failure in words; empty when a rationale was accepted."""
    last_reply: str
    """What the teacher wrote last; empty when it wrote nothing."""
    first_prediction: str | None
    """The label that the teacher found by itself; None when it gave no valid one."""
    asks: tuple[Ask, ...]
    """Every question, in order."""


class _FailedError(Exception):
    """The dialogue cannot end in a rationale."""

    def __init__(self, failure: Failure, reason: str) -> None:
        super().__init__(reason)
        self.failure: Failure = failure


@dataclass(slots=True)
class _Log:
    """What a dialogue has gone through so far."""

    post: Post
    image_sha256: str
    last_reply: str = ""
    first_prediction: str | None = None
    asks: list[Ask] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked until it is answered well or too often."""

    request: TeacherRequest
    key: str
    prompt_hash: str


class Dialogue:
    """Leads the dialogue about any number of posts at once, all in one event loop, over one label store.

    A reply that is stored is used again. Equal questions under way at the same time are sent once. A request that was
    sent is never abandoned when the dialogue around it is cancelled: `drain` waits until its reply is stored.

    Args:
        teacher: Who is asked.
        store: Where attempts and replies are kept.
        labels: The labels of the data set.
        max_reasks: How often a reply that is malformed, or an explanation that contradicts the label, is asked for
            again, for each of the two uses.
        accept_unlabelled: Whether a post without a gold label is given the teacher's own; else it is not asked about.

    Raises:
        InputError: There are no labels, or `max_reasks` is negative.
    """

    def __init__(
        self, teacher: Teacher, store: LabelStore, labels: Sequence[str], max_reasks: int, accept_unlabelled: bool
    ) -> None:
        if not labels:
            raise InputError("labels: the list is empty; give the labels of the data set")
        if max_reasks < 0:
            raise InputError(f"max_reasks: must be 0 or more, is {max_reasks}")
        self._teacher = teacher
        self._store = store
        self._labels = tuple(labels)
        self._max_reasks = max_reasks
        self._accept_unlabelled = accept_unlabelled
        self._under_way: dict[tuple[str, int], asyncio.Task[TeacherReply]] = {}

    async def run(self, post: Post) -> Outcome:
        """Leads the dialogue about one post to its end.

        Raises:
            InputError: The post's picture cannot be read, or its gold label is none of the labels.
            Exception: Whatever the teacher raises beside `TeacherSilentError`; nothing is retried here.
        """
        log = _Log(post, "")
        record, failure, reason = None, None, ""
        try:
            record = await self._converse(log)
        except _FailedError as error:
            failure, reason = error.failure, str(error)
        return Outcome(post, record, failure, reason, log.last_reply, log.first_prediction, tuple(log.asks))

    async def drain(self, seconds: float) -> None:
        """Waits for the requests under way, so that their replies are stored; cancels them after `seconds`."""
        waiting = set(self._under_way.values())
        if not waiting:
            return
        _, late = await asyncio.wait(waiting, timeout=seconds)
        for task in late:
            task.cancel()
        # What a request raises here belongs to a run that is already being stopped by an earlier error.
        await asyncio.gather(*waiting, return_exceptions=True)

    async def _converse(self, log: _Log) -> RationaleRecord:
        post = log.post
        if post.label is None and not self._accept_unlabelled:
            raise _FailedError("unlabelled", "the post has no gold label and accept_unlabelled is off")
        if post.label is not None and post.label not in self._labels:
            raise InputError(f"post {post.id!r}: its label {post.label!r} is none of {', '.join(self._labels)}")
        # Read right here: a picture takes less time than handing it to another thread and back.
        log.image_sha256 = _image_sha256(post)
        predicted = await self._answer(self._question(log, "predict"), log)
        log.first_prediction = predicted.rationale.prediction
        if post.label in (None, log.first_prediction):
            return predicted
        note = f"the teacher predicted {log.first_prediction!r} where the gold label is {post.label!r}; "
        return await self._answer(self._question(log, "explain"), log, note)

    def _question(self, log: _Log, use: TeacherUse) -> _Question:
        post = log.post
        label = post.label if use == "explain" else None
        prompt = get_prompt(post.setting, "teacher_explain" if use == "explain" else "teacher_predict")
        request = TeacherRequest(post, prompt.render(post, self._labels, label=label), use, label)
        return _Question(request, content_key(self._teacher, request, prompt.hash, log.image_sha256), prompt.hash)

    async def _answer(self, question: _Question, log: _Log, note: str = "") -> RationaleRecord:
        """Asks until the reply is a rationale that fits; `note` opens the reason when none does."""
        failure: Failure = "silent"
        for attempt in range(self._max_reasks + 1):
            try:
                reply = await self._ask(question, attempt, log)
            except TeacherSilentError as silence:
                raise _FailedError(failure, f"{note}no reply to {_name(question, attempt)}: {silence}") from silence
            try:
                rationale = parse_rationale(reply.text, self._labels)
            except RationaleRefusedError as refusal:
                failure, reason = "malformed", str(refusal)
            else:
                if question.request.label in (None, rationale.prediction):
                    self._store.accept(question.key, attempt, rationale)
                    return self._record(rationale, question, log)
                failure = "contradicting"
                reason = f"its Prediction is {rationale.prediction!r}, not {question.request.label!r}"
            self._store.refuse(question.key, attempt, reason)
            note += f"{_name(question, attempt)} refused: {reason}; "
        raise _FailedError(failure, note.removesuffix("; "))

    async def _ask(self, question: _Question, attempt: int, log: _Log) -> TeacherReply:
        """The reply to one attempt: from the store, from the same request already under way, or from the teacher."""
        name = (question.key, attempt)
        task = self._under_way.get(name)
        is_new = False
        try:
            reply = None if task else self._store.reply(*name)
            if reply is None:
                if task is None:
                    is_new = True
                    task = asyncio.create_task(self._send(replace(question.request, attempt=attempt), question.key))
                    self._under_way[name] = task
                    task.add_done_callback(lambda _: self._under_way.pop(name))
                reply = await asyncio.shield(task)
        except TeacherSilentError:
            log.asks.append(Ask(*name, is_new))
            raise
        log.asks.append(Ask(*name, is_new, reply.prompt_tokens, reply.completion_tokens))
        log.last_reply = reply.text
        return reply

    async def _send(self, request: TeacherRequest, key: str) -> TeacherReply:
        self._store.begin(key, request.attempt, request.use, request.label)
        try:
            reply = await self._teacher.complete(request)
        except TeacherSilentError as silence:
            self._store.record_silence(key, request.attempt, str(silence))
            raise
        # Half a surrogate pair (a JSON escape cut in two) is no text and fits into no UTF-8 file.
        reply = replace(reply, text=reply.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        self._store.record_reply(key, request.attempt, reply)
        return reply

    def _record(self, rationale: Rationale, question: _Question, log: _Log) -> RationaleRecord:
        source: Source = "teacher-predicted" if question.request.use == "predict" else "teacher-explained"
        return RationaleRecord(
            post_id=log.post.id,
            rationale=rationale,
            source=source,
            model=self._teacher.name,
            prompt_hash=question.prompt_hash,
            attempts=len(log.asks),
            prompt_tokens=sum(ask.prompt_tokens for ask in log.asks),
            completion_tokens=sum(ask.completion_tokens for ask in log.asks),
        )


def _name(question: _Question, attempt: int) -> str:
    return question.request.use if attempt == 0 else f"{question.request.use} (re-ask {attempt})"


def _image_sha256(post: Post) -> str:
    try:
        return hashlib.sha256(post.image.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"post {post.id!r}: cannot read its picture {post.image}: {error.strerror}") from error
