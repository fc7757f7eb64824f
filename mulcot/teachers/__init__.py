"""Teachers: where rationales come from, and the store that keeps every reply."""

from mulcot.teachers.base import Teacher, TeacherReply, TeacherRequest, TeacherSilentError, TeacherUse
from mulcot.teachers.oracle import OracleTeacher
from mulcot.teachers.recorded import RecordedTeacher
from mulcot.teachers.store import AnswersById, LabelStore, content_key

__all__ = [
    "AnswersById",
    "LabelStore",
    "OracleTeacher",
    "RecordedTeacher",
    "Teacher",
    "TeacherReply",
    "TeacherRequest",
    "TeacherSilentError",
    "TeacherUse",
    "content_key",
]
