"""What the teacher stage asks of whoever writes rationales: an endpoint, a model, a recording, the demo oracle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from mulcot.prompts import RenderedPrompt
from mulcot.types import InputError, Post

TeacherUse = Literal["predict", "explain"]
Finish = Literal["stop", "length", "filtered", "unknown"]
"""Why a reply ends: the model was done, it was cut off, a content filter took it, or nobody said."""


@dataclass(frozen=True, slots=True)
class TeacherRequest:
    """One question to a teacher."""

    post: Post
    """The post, for its picture and its id; what the teacher is told of it in words is in `prompt`."""
    prompt: RenderedPrompt
    """The text of the question."""
    use: TeacherUse
    """`predict`: find the label and say why. `explain`: say why the label is `label`."""
    label: str | None = None
    """The label to be explained; None for `predict`."""
    attempt: int = 0
    """0 for the first time that this is asked, 1 for the first re-ask of a reply that was refused, ..."""
    sample: int = 0
    """Which of several rationales of the post this is; replies to other samples differ although the prompt does not."""
    idempotency_key: str = ""
    """A name for this question and attempt: equal for every sending of it, also after a crash."""


@dataclass(frozen=True, slots=True)
class TeacherReply:
    """What a teacher wrote, unchanged, and what it cost."""

    text: str
    """The whole reply."""
    prompt_tokens: int = 0
    """Tokens read; 0 where the teacher does not count."""
    completion_tokens: int = 0
    """Tokens written; 0 where the teacher does not count."""
    finish: Finish = "stop"
    """Why it ends; the stage refuses a reply that was cut off or filtered."""


class TeacherSilentError(RuntimeError):
    """The teacher has no reply to this request and asking again would not change that; the message says why."""


class TeacherUnavailableError(RuntimeError):
    """There was no reply this time, after all retries; asking in a later run may bring one. The message says why."""


class TeacherStoppedError(RuntimeError):
    """The run is being stopped, and the request was not sent."""


class TeacherPausedError(InputError):
    """The run cannot go on now and can be resumed: exhausted quota, a long wait, an endpoint that is down, a limit.

    What is under way is let finish; the message says what happened and how to go on.
    """

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Teacher(Protocol):
    """Whoever writes rationales. The stage owns the dialogue; a teacher answers one request at a time."""

    @property
    def name(self) -> str:
        """The model's name, as it is written into every rationale record."""
        ...

    @property
    def parameters(self) -> Mapping[str, str | int | float]:
        """Everything beside the request that a reply depends on (sampling, seed, ...); part of the content key."""
        ...

    async def complete(self, request: TeacherRequest) -> TeacherReply:
        """Answers one request.

        Raises:
            TeacherSilentError: there is no answer to this request, now or later.
            TeacherUnavailableError: there is none now; the run goes on with other posts.
            TeacherPausedError: there is none now for any request; the run stops.
            InputError: the teacher is configured wrongly (key, model, address); the run stops.
        """
        ...
