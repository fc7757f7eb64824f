"""The names of questions and of their attempts."""

from __future__ import annotations

import hashlib
import json
from typing import Protocol, runtime_checkable

from mulcot.teachers.base import Teacher, TeacherRequest
from mulcot.teachers.store_files import SCHEMA_VERSION


@runtime_checkable
class AnswersById(Protocol):
    """A teacher that looks its replies up by the post's id: the id then belongs to the content key.

    Without it, two posts with the same text, aspect and picture are one question, asked and paid once.
    """

    @property
    def answers_by_id(self) -> bool:
        """Whether the reply depends on the id."""
        ...


def content_key(teacher: Teacher, request: TeacherRequest, prompt_hash: str, image_sha256: str) -> str:
    """The name under which the replies to a request are kept: SHA-256 (hex) of all that a reply depends on.

    The attempt is not part of it; the gold label is part of it only where the teacher is told it (`explain`).
    """
    by_id = isinstance(teacher, AnswersById) and teacher.answers_by_id
    content = {
        "schema": SCHEMA_VERSION,
        "teacher": teacher.name,
        "parameters": dict(teacher.parameters),
        "use": request.use,
        "prompt_hash": prompt_hash,
        "prompt": request.prompt.text,
        "image": image_sha256,
        "text": request.post.text,
        "aspect": request.post.aspect,
        "label": request.label,
        "sample": request.sample,
        "id": request.post.id if by_id else None,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def idempotency_key(key: str, attempt: int) -> str:
    """The name of one attempt at one question, equal for every sending of it: 32 hex digits."""
    return hashlib.sha256(f"{key}/{attempt}".encode()).hexdigest()[:32]
