"""Prompts: one small class per template, its text in a .jinja file beside it."""

from mulcot.prompts.base import Prompt, PromptUse, RenderedPrompt, Segment
from mulcot.prompts.templates import PROMPTS, get_prompt, register

__all__ = ["PROMPTS", "Prompt", "PromptUse", "RenderedPrompt", "Segment", "get_prompt", "register"]
