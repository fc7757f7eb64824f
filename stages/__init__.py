"""The three stages, one LightningModule each."""

from stages.assistant import AssistantStage
from stages.student import StudentStage
from stages.teacher import TeacherStage

__all__ = ["AssistantStage", "StudentStage", "TeacherStage"]
