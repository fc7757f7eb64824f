"""Prompts as segments: what we wrote, and what a post's author wrote, never mixed up."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import ClassVar, Final, Literal

from jinja2 import FunctionLoader, StrictUndefined, TemplateNotFound, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mulcot.types import DEFAULT_LABELS, InputError, Post, Setting

PromptUse = Literal["teacher_predict", "teacher_explain", "reasoning", "classification"]

SCHEMA_VERSION: Final = 1
"""Part of every hash: raise it when rendering changes although no template does (quoting, values, segments)."""

# Jinja only ever sees these marks, never a value: what they stand for is put in after the template is rendered, so
# a value can neither be taken for a mark nor for template source, whatever characters it holds.
_MARK_OPEN, _MARK_CLOSE = "\ue000", "\ue001"
_MARK = re.compile(f"{_MARK_OPEN}(\\d+){_MARK_CLOSE}")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a prompt's text."""

    text: str
    """The characters."""
    is_data: bool
    """True for what comes from a post: it is tokenised as plain text, whatever special tokens it spells."""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt filled in for one post."""

    segments: tuple[Segment, ...]
    """In order; their texts joined are the prompt."""

    @property
    def text(self) -> str:
        """The whole prompt, for a teacher that takes plain text."""
        return "".join(segment.text for segment in self.segments)


class Prompt:
    """A template for one setting and one use; its text is `<setting>_<use>.jinja` beside this file.

    A template may use `text`, `aspect` (MASC only), `labels` (all, separated by commas), `choices` (one `name` and
    `sentiment` per label, see `sentiments_known`), `label` (explanations only) and `branch`, which writes nothing and
    starts a new segment: what two tasks share ends there.
    """

    setting: ClassVar[Setting]
    """Whether the whole post or one aspect of it is judged."""
    use: ClassVar[PromptUse]
    """Who is asked for what."""

    @property
    def template(self) -> str:
        """The file that holds the text."""
        return f"{self.setting}_{self.use}.jinja"

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that change with the template, with any file it includes, or with `SCHEMA_VERSION`."""
        return _template_hash(self.template)

    def render(self, post: Post, labels: Sequence[str], *, label: str | None = None) -> RenderedPrompt:
        """The prompt for one post; its picture is attached by the chat template, not here.

        Args:
            post: the post; its text and aspect become segments of their own, each a quoted JSON string on one line.
            labels: the possible answers, in the order in which they are offered.
            label: the label to be explained; other uses than `teacher_explain` never show it.

        Raises:
            InputError: the setting asks about an aspect and the post has none.
            ValueError: an explanation is asked for without a label.
        """
        if self.use == "teacher_explain" and label is None:
            raise ValueError(f"post {post.id}: the prompt {self.template} explains a label, and none was given")
        data = {"text": _quoted(post.text)}
        if self.setting == "masc":
            data["aspect"] = _quoted(self._aspect(post))
        explained = label if self.use == "teacher_explain" else None
        return RenderedPrompt(
            tuple(
                Segment(data[part.text], is_data=True) if part.is_data else part
                for part in _outline(self.template, tuple(data), tuple(labels), explained)
            )
        )

    def _aspect(self, post: Post) -> str:
        if post.aspect is None:
            raise InputError(
                f"post {post.id}: field aspect is missing; the masc prompts ask about one "
                "(give every post an aspect, or choose the setting msc)"
            )
        return post.aspect


class _Marks:
    """Marks that stand in a template for values, and the values themselves."""

    def __init__(self) -> None:
        self._held: list[Segment | None] = []

    def hold(self, text: str, *, is_data: bool = False) -> str:
        """A mark for this text."""
        return self._mark(Segment(text, is_data))

    def branch(self) -> str:
        """A mark at which a new segment starts."""
        return self._mark(None)

    def _mark(self, segment: Segment | None) -> str:
        self._held.append(segment)
        return f"{_MARK_OPEN}{len(self._held) - 1}{_MARK_CLOSE}"

    def fill(self, rendered: str) -> tuple[Segment, ...]:
        """The segments of a rendered template: data alone, our own text joined between data and branch marks."""
        segments: list[Segment] = []
        ours = ""
        for position, piece in enumerate(_MARK.split(rendered)):
            if position % 2 == 0:  # re.split alternates between the text around the marks and their numbers
                ours += piece
                continue
            held = self._held[int(piece)]
            if held is not None and not held.is_data:
                ours += held.text
                continue
            segments += [Segment(ours, is_data=False)] if ours else []
            segments += [held] if held is not None else []
            ours = ""
        return (*segments, Segment(ours, is_data=False)) if ours else tuple(segments)


@cache
def _outline(template: str, data: tuple[str, ...], labels: tuple[str, ...], label: str | None) -> tuple[Segment, ...]:
    """A rendered template in which each data segment holds the name of what goes there instead of its text.

    All posts share it: rendering the template for each anew took most of the time of writing a prompt.
    """
    marks = _Marks()
    values: dict[str, object] = {
        **{name: marks.hold(name, is_data=True) for name in data},
        "labels": marks.hold(", ".join(labels)),
        "choices": [{"name": marks.hold(name), "sentiment": name.strip().casefold()} for name in labels],
        "sentiments_known": all(name.strip().casefold() in DEFAULT_LABELS for name in labels),
        "branch": marks.branch(),
    }
    if label is not None:
        values["label"] = marks.hold(label)
    rendered = _environment().get_template(template).render(values)
    return marks.fill(rendered.rstrip("\n"))  # the chat template says what follows a message


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _source(name: str) -> str:
    try:
        return files("mulcot.prompts").joinpath(name).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise TemplateNotFound(name) from error


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        loader=FunctionLoader(_source),
        undefined=StrictUndefined,
        autoescape=False,  # a prompt is plain text, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,  # trim_blocks takes the line end after an include: the included file brings it
    )


@cache
def _template_hash(name: str) -> str:
    """The hash of a template: names and sources of it and of all it includes, each once, in order of first use."""
    sources: dict[str, str] = {}
    waiting = [name]
    while waiting:
        current = waiting.pop(0)
        if current in sources:
            continue
        sources[current] = _source(current)
        for included in meta.find_referenced_templates(_environment().parse(sources[current])):
            if included is None:
                raise ValueError(f"{current}: an include must name its file, else the prompt's hash cannot cover it")
            waiting.append(included)
    content = json.dumps([SCHEMA_VERSION, list(sources.items())])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
