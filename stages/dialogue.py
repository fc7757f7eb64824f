"""The dialogue with a teacher about one post: predict, check against gold, explain when wrong, check again."""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from mulcot.generation.parsing import RationaleRefusedError, parse_rationale
from mulcot.prompts import PromptUse, get_prompt
from mulcot.teachers.base import (
    Teacher,
    TeacherReply,
    TeacherRequest,
    TeacherSilentError,
    TeacherStoppedError,
    TeacherUnavailableError,
    TeacherUse,
)
from mulcot.teachers.content_keys import content_key, idempotency_key
from mulcot.teachers.filters import Candidate
from mulcot.teachers.limits import Budget, Stoppable
from mulcot.teachers.store import LabelStore
from mulcot.teachers.store_writer import GroupCommit
from mulcot.types import InputError, Post, Rationale, RationaleRecord, Setting, Source
from stages.outcomes import PROMPT_USES, Ask, Failure, Outcome, Rules

SETTINGS: Final[tuple[Setting, ...]] = ("msc", "masc")
_BLANKS: Final = re.compile(r"(?:\s|\\[nrt]){100}")
"""A model that is caught in a loop of blanks, also of those that JSON spells with a backslash."""
_LOOK_SECONDS: Final = 0.1
"""How often a draining run looks whether it is to be abandoned."""
_CUT: Final = {"length": "the reply was cut off at its greatest length", "filtered": "a content filter took the reply"}


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
    sample: int = 0
    known: frozenset[str] = frozenset()
    """The rationales that the post has already, as JSON."""
    last_reply: str = ""
    first_prediction: str | None = None
    prompt_hash: str = ""
    is_imported: bool = False
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
    sent is never abandoned when the dialogue around it is cancelled: `drain` waits until its reply is stored. An error
    that concerns more than one question stops all sending at once.

    Args:
        teacher: Who is asked.
        store: Where attempts and replies are kept; nobody else may write to it until `drain` has ended.
        rules: What the dialogues have in common.
        budget: What may be spent.
    """

    def __init__(self, teacher: Teacher, store: LabelStore, rules: Rules, budget: Budget) -> None:
        self.writes = GroupCommit(store)
        self.budget = budget
        self._teacher = teacher
        self._store = store
        self._rules = rules
        self._stopped = self._abandoned = False
        self._noted: set[str] = set()
        self._under_way: dict[tuple[str, int], asyncio.Task[TeacherReply]] = {}

    async def run(self, post: Post) -> list[Outcome]:
        """Leads the dialogues about one post to their end, one for each of its rationales.

        Raises:
            InputError: The post's picture cannot be read, or its gold label is none of the labels; the teacher is
                configured wrongly; the store cannot be written.
            TeacherPausedError: The teacher cannot go on, or a limit is reached.
            Exception: Whatever else the teacher raises; nothing is retried here.
        """
        outcomes: list[Outcome] = []
        image = ""
        try:
            for sample in range(self._rules.rationales_per_post):
                known = frozenset(outcome.record.rationale.to_json() for outcome in outcomes if outcome.record)
                log = _Log(post, image, sample, known)
                outcomes.append(await self._outcome(log))
                image = log.image_sha256
                if outcomes[-1].failure == "unlabelled":  # the others would say the same
                    break
        except Exception:
            self.stop()
            raise
        return outcomes

    def first_question(self, post: Post, sample: int) -> tuple[str, int] | None:
        """The content key and the length of the first question about a post, None where nothing will be asked.

        Raises:
            InputError: As `run`.
        """
        if (post.label is None and not self._rules.accept_unlabelled) or self._imported(post, sample):
            return None
        question = self._question(_Log(post, image_sha256(post), sample), "predict")
        return question.key, len(question.request.prompt.text)

    def stop(self) -> None:
        """Sends nothing new from now on; may be called from any thread. Dialogues that would send are cancelled."""
        self._stopped = True

    def interrupt(self) -> None:
        """Keeps back also what waits to be sent (again); a limit lets it go on. May be called from any thread."""
        self.stop()
        if isinstance(self._teacher, Stoppable):
            self._teacher.stop()

    def abandon(self) -> None:
        """Has `drain` wait no longer; may be called from any thread and from a signal's handler."""
        self._abandoned = True

    async def drain(self, seconds: float) -> None:
        """Waits for the requests under way, so that their replies are stored; cancels them after `seconds`.

        Raises:
            InputError: Judgements could not be written.
        """
        self.stop()
        try:
            waiting = set(self._under_way.values())
            deadline = asyncio.get_running_loop().time() + seconds
            late = waiting
            while late and not self._abandoned and asyncio.get_running_loop().time() < deadline:
                _, late = await asyncio.wait(late, timeout=min(_LOOK_SECONDS, seconds))
            for task in late:
                task.cancel()
            # What a request raises here belongs to a run that is already being stopped by an earlier error.
            await asyncio.gather(*waiting, return_exceptions=True)
        finally:
            await self.writes.close()

    async def _outcome(self, log: _Log) -> Outcome:
        record, failure, reason = None, None, ""
        try:
            record = await self._converse(log)
        except _FailedError as error:
            failure, reason = error.failure, str(error)
        return Outcome(
            post=log.post,
            sample=log.sample,
            record=record,
            failure=failure,
            reason=reason,
            last_reply=log.last_reply,
            first_prediction=log.first_prediction,
            asks=tuple(log.asks),
            prompt_hash=log.prompt_hash,
            image_sha256=log.image_sha256,
            is_imported=log.is_imported,
        )

    async def _converse(self, log: _Log) -> RationaleRecord:
        post = log.post
        if post.label is None and not self._rules.accept_unlabelled:
            raise _FailedError("unlabelled", "the post has no gold label and accept_unlabelled is off")
        if post.label is not None and post.label not in self._rules.labels:
            raise InputError(f"post {post.id!r}: its label {post.label!r} is none of {', '.join(self._rules.labels)}")
        imported = self._imported(post, log.sample)
        if imported is not None:
            log.is_imported = True
            log.prompt_hash = imported.prompt_hash
            return imported
        # Read right here: a picture takes less time than handing it to another thread and back.
        log.image_sha256 = log.image_sha256 or image_sha256(post)
        predicted = await self._answer(self._question(log, "predict"), log)
        found = predicted.rationale.prediction
        if post.label in (None, found):
            return predicted
        note = f"the teacher predicted {found!r} where the gold label is {post.label!r}; "
        return await self._answer(self._question(log, "explain"), log, note)

    def _imported(self, post: Post, sample: int) -> RationaleRecord | None:
        """The record that was brought in for this rationale of the post and fits it."""
        fitting = [
            record
            for record in self._store.brought_in(post.id)
            if record.rationale.prediction in self._rules.labels and post.label in (None, record.rationale.prediction)
        ]
        return fitting[sample] if sample < len(fitting) else None

    def _question(self, log: _Log, use: TeacherUse) -> _Question:
        post = log.post
        label = post.label if use == "explain" else None
        prompt = get_prompt(post.setting, self._rules.prompt_use(use))
        log.prompt_hash = prompt.hash
        text = prompt.render(post, self._rules.labels, label=label)
        request = TeacherRequest(post, text, use, label, sample=log.sample)
        return _Question(request, content_key(self._teacher, request, prompt.hash, log.image_sha256), prompt.hash)

    async def _answer(self, question: _Question, log: _Log, note: str = "") -> RationaleRecord:
        """Asks until the reply is a rationale that fits; `note` opens the reason when none does."""
        failure: Failure = "silent"
        for attempt in range(self._rules.max_reasks + 1):
            try:
                reply = await self._ask(question, attempt, log)
            except TeacherSilentError as silence:
                raise _FailedError(failure, f"{note}no reply to {_name(question, attempt)}: {silence}") from silence
            except TeacherUnavailableError as absence:
                reason = f"{note}no reply to {_name(question, attempt)} this time: {absence}"
                raise _FailedError("unavailable", reason) from absence
            judged = await self._judge(question, reply, log)
            if isinstance(judged, Rationale):
                self.writes.note(partial(self._store.accept, question.key, attempt, judged))
                return self._record(judged, question, log)
            failure, reason = judged
            self.writes.note(partial(self._store.refuse, question.key, attempt, reason))
            note += f"{_name(question, attempt)} refused: {reason}; "
        raise _FailedError(failure, note.removesuffix("; "))

    async def _judge(self, question: _Question, reply: TeacherReply, log: _Log) -> Rationale | tuple[Failure, str]:
        """The rationale that a reply holds, or the kind and the words of what is wrong with it."""
        if reply.finish in _CUT:
            return "malformed", _CUT[reply.finish]
        if _BLANKS.search(reply.text):
            return "malformed", "the reply holds a loop of blanks"
        try:
            rationale = parse_rationale(reply.text, self._rules.labels)
        except RationaleRefusedError as refusal:
            return "malformed", str(refusal)
        wanted = question.request.label
        if wanted not in (None, rationale.prediction):
            return "contradicting", f"its Prediction is {rationale.prediction!r}, not {wanted!r}"
        if question.request.use == "predict":
            log.first_prediction = log.first_prediction or rationale.prediction
            if log.post.label not in (None, rationale.prediction):
                return rationale  # only its label counts, the explanation will be filtered
        objection = await self._objection(Candidate(log.post, rationale, question.key), log)
        return rationale if objection is None else ("filtered", objection)

    async def _objection(self, candidate: Candidate, log: _Log) -> str | None:
        if candidate.rationale.to_json() in log.known:
            return "the post has this very rationale already"
        for one in self._rules.filters:  # in threads: a filter may read a picture and run a model
            objection = await asyncio.to_thread(one.objection, candidate)
            if objection is not None:
                return objection
        return None

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
                    task = self._start(question, attempt)
                reply = await asyncio.shield(task)
        except (TeacherSilentError, TeacherUnavailableError):
            log.asks.append(Ask(*name, is_new))
            raise
        log.asks.append(Ask(*name, is_new, reply.prompt_tokens, reply.completion_tokens))
        log.last_reply = reply.text
        return reply

    def _start(self, question: _Question, attempt: int) -> asyncio.Task[TeacherReply]:
        """Sends a request that goes on when the dialogue around it is cancelled.

        Raises:
            TeacherPausedError: A limit is reached.
            asyncio.CancelledError: The run is being stopped.
        """
        if self._stopped:
            raise asyncio.CancelledError
        self.budget.take()
        self._note_prompt(question)
        name = (question.key, attempt)
        request = replace(question.request, attempt=attempt, idempotency_key=idempotency_key(*name))
        task = asyncio.create_task(self._send(request, question.key))
        self._under_way[name] = task
        task.add_done_callback(lambda _: self._under_way.pop(name))
        return task

    def _note_prompt(self, question: _Question) -> None:
        """Keeps the version of a prompt that is about to be answered, once a run."""
        name = prompt_name(question.request.post.setting, self._rules.prompt_use(question.request.use))
        if name not in self._noted:
            self._noted.add(name)
            self.writes.note(partial(self._store.set_expected, name, question.prompt_hash))

    async def _send(self, request: TeacherRequest, key: str) -> TeacherReply:
        name = (key, request.attempt)
        await self.writes.commit(partial(self._store.begin, *name, request.use, request.label, self._teacher.name))
        try:
            if self._stopped:
                raise TeacherStoppedError
            reply = await self._teacher.complete(request)
        except TeacherStoppedError:
            self.budget.give_back()
            await self.writes.commit(partial(self._store.withdraw, *name))
            raise asyncio.CancelledError from None
        except TeacherSilentError as silence:
            await self.writes.commit(partial(self._store.record_silence, *name, _text(str(silence))))
            raise
        except TeacherUnavailableError as absence:
            self.writes.note(partial(self._store.record_absence, *name, _text(str(absence))))
            raise
        except Exception:
            self.stop()
            raise
        self.budget.spend(reply.prompt_tokens, reply.completion_tokens)
        reply = replace(reply, text=_text(reply.text))
        await self.writes.commit(partial(self._store.record_reply, *name, reply))
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


def prompt_name(setting: Setting, use: PromptUse) -> str:
    """What the version of a prompt is called in a store."""
    return f"the prompt {setting}_{use}"


def refuse_other_prompts(store: LabelStore) -> None:
    """Sees to it that a store answers today's prompts: else every post would be asked about, and paid for, again.

    Raises:
        InputError: it answers others.
    """
    for setting in SETTINGS:
        for use in PROMPT_USES:
            explain = (
                "every post would be asked about anew; take another stage folder or the mulcot that made it, or give "
                "model.init_args.other_prompts: true"
            )
            store.expect(prompt_name(setting, use), get_prompt(setting, use).hash, explain)


def image_sha256(post: Post) -> str:
    """The SHA-256 (hex) of a post's picture as it lies there.

    Raises:
        InputError: It cannot be read.
    """
    try:
        if isinstance(post.image, Path):  # ten thousand of them: the shortest way to the bytes
            with open(post.image, "rb", buffering=0) as file:
                return hashlib.sha256(file.read()).hexdigest()
        return hashlib.sha256(post.image.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"post {post.id!r}: cannot read its picture {post.image}: {error.strerror}") from error


def _text(written: str) -> str:
    """The text, with half a surrogate pair (a JSON escape cut in two) replaced: it fits into no UTF-8 file."""
    return written.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _name(question: _Question, attempt: int) -> str:
    return question.request.use if attempt == 0 else f"{question.request.use} (re-ask {attempt})"
