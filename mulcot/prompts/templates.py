"""The prompts that mulcot knows: one class each, found by setting and use."""

from __future__ import annotations

from typing import Final

from mulcot.prompts.base import Prompt, PromptUse
from mulcot.types import InputError, Setting

PROMPTS: Final[dict[tuple[Setting, PromptUse], Prompt]] = {}
"""Every registered prompt."""


def register(prompt: type[Prompt]) -> type[Prompt]:
    """Class decorator: makes a prompt known under its setting and use.

    Raises:
        ValueError: that setting and use are taken.
    """
    key = (prompt.setting, prompt.use)
    if key in PROMPTS:
        raise ValueError(f"{prompt.__name__}: {key} is already the prompt {type(PROMPTS[key]).__name__}")
    PROMPTS[key] = prompt()
    return prompt


def get_prompt(setting: Setting, use: PromptUse) -> Prompt:
    """The prompt for a setting and a use.

    Raises:
        InputError: there is none.
    """
    try:
        return PROMPTS[setting, use]
    except KeyError:
        known = ", ".join(" ".join(key) for key in PROMPTS)
        raise InputError(f"there is no prompt for setting {setting!r} and use {use!r}; there are: {known}") from None


@register
class MscTeacherPredict(Prompt):
    """The teacher judges a whole post and says why."""

    setting = "msc"
    use = "teacher_predict"


@register
class MscTeacherExplain(Prompt):
    """The teacher explains the known sentiment of a whole post."""

    setting = "msc"
    use = "teacher_explain"


@register
class MscReasoning(Prompt):
    """Assistant and student write the five fields for a whole post."""

    setting = "msc"
    use = "reasoning"


@register
class MscClassification(Prompt):
    """Assistant and student give the Prediction alone for a whole post."""

    setting = "msc"
    use = "classification"


@register
class MascTeacherPredict(Prompt):
    """The teacher judges a post towards one aspect and says why."""

    setting = "masc"
    use = "teacher_predict"


@register
class MascTeacherExplain(Prompt):
    """The teacher explains the known sentiment of a post towards one aspect."""

    setting = "masc"
    use = "teacher_explain"


@register
class MascReasoning(Prompt):
    """Assistant and student write the five fields for one aspect of a post."""

    setting = "masc"
    use = "reasoning"


@register
class MascClassification(Prompt):
    """Assistant and student give the Prediction alone for one aspect of a post."""

    setting = "masc"
    use = "classification"
