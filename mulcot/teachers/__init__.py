"""Teachers: where rationales come from, and the store that keeps every reply."""

from mulcot.teachers.base import (
    Finish,
    Teacher,
    TeacherPausedError,
    TeacherReply,
    TeacherRequest,
    TeacherSilentError,
    TeacherUnavailableError,
    TeacherUse,
)
from mulcot.teachers.content_keys import AnswersById, content_key
from mulcot.teachers.local import LocalTeacher
from mulcot.teachers.openai_endpoint import OpenAITeacher
from mulcot.teachers.oracle import OracleTeacher
from mulcot.teachers.recorded import RecordedTeacher
from mulcot.teachers.store import LabelStore

__all__ = [
    "AnswersById",
    "Finish",
    "LabelStore",
    "LocalTeacher",
    "OpenAITeacher",
    "OracleTeacher",
    "RecordedTeacher",
    "Teacher",
    "TeacherPausedError",
    "TeacherReply",
    "TeacherRequest",
    "TeacherSilentError",
    "TeacherUnavailableError",
    "TeacherUse",
    "content_key",
]
