"""From a post to token ids: the chat template, the picture's tokens, and text that can never turn into control tokens.

A row is `prefix | response`. The prefix is the chat template around the prompt; it falls into pieces that are ours
(tokenised with special tokens) and pieces that come from a post (tokenised as plain text, whatever they spell). The
first piece holds the picture's placeholder and is encoded together with the picture by the model's own processor, so
any vision-language model of transformers works.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from mulcot.images import load_image
from mulcot.memory import is_out_of_memory
from mulcot.prompts import RenderedPrompt, get_prompt
from mulcot.rows.plain_text import PlainText
from mulcot.shown_text import first_line
from mulcot.types import TASKS, InputError, Post, Setting, Task

MAX_ASPECT_RATIO: Final = 200
"""Qwen's image processors refuse more elongated pictures; they are brought to this ratio for every model."""
# Private-use characters mark where a post's text goes while the chat template is rendered around it.
_MARK: Final = "\ue000{}\ue001"
_MARKS: Final = re.compile("\ue000([0-9]{1,4})\ue001")
_MAX_RENDERED: Final = 1 << 20
"""Characters that a chat template writes at most: those of our own prompts have a few thousand."""


@dataclass(frozen=True, slots=True)
class TextRow:
    """A row but for its picture."""

    post: Post
    """Whose row it is."""
    task: Task
    """Which prompt it carries."""
    head: str
    """The first piece of the prefix as text; it holds the picture's placeholder."""
    tail_ids: tuple[int, ...]
    """The token ids of the rest of the prefix."""
    response_ids: tuple[int, ...]
    """The token ids to be learnt, end of turn included; empty for a question."""

    @property
    def length(self) -> int:
        """Tokens of the row without its head."""
        return len(self.tail_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True)
class EncodedHead:
    """The first piece of a prefix together with the picture."""

    per_token: Mapping[str, Tensor]
    """`input_ids` and whatever else the processor gives per token, each `[tokens]`."""
    vision: Mapping[str, Tensor]
    """The processor's other tensors (pixels, grids), rows of one picture along dimension 0."""

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return len(self.per_token["input_ids"])

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(value.nbytes for values in (self.per_token, self.vision) for value in values.values())


class RowEncoder:
    """Encodes posts for one model.

    Args:
        processor: the model's Hugging Face processor (tokenizer, image processor, chat template).
        labels: the label set, as it is named in prompts.
        image_size: width and height that every picture is squeezed to, whatever the processor's pixel budget, as the
            published code does with 280 x 280. None keeps its shape and leaves its size to that budget; only a
            picture more elongated than the budget has tokens, or than `MAX_ASPECT_RATIO`, is squeezed to that ratio
            first: Qwen's processor would refuse it or spend more tokens than the budget.
        pad_end: ends a response with the pad token instead of the chat template's end of turn, as the published code
            does.
    """

    def __init__(
        self,
        processor: Any,
        labels: Sequence[str],
        image_size: tuple[int, int] | None = None,
        *,
        pad_end: bool = False,
    ) -> None:
        self.processor = processor
        self.image_size = image_size
        self._pictures_processor = processor if image_size is None else _with_budget_for(processor, image_size)
        self._max_ratio = min(MAX_ASPECT_RATIO, _token_budget(processor.image_processor) or MAX_ASPECT_RATIO)
        self.tokenizer = processor.tokenizer
        self._name = str(self.tokenizer.name_or_path)
        self._last_id = max(self.tokenizer.get_vocab().values())
        self._picture_id = getattr(processor, "image_token_id", None)
        self._plain = PlainText(processor)
        self.labels = tuple(labels)
        self.end_of_turn = self._find_end_of_turn()
        self._pad_end = pad_end
        if pad_end:
            self.end_of_turn = (self.pad_id,)
        self._check_ends()
        for label in self.labels:  # they stand in prompts as our own text does
            if not self._plain.controls.isdisjoint(self._tokenise_fixed(label)):
                raise InputError(f"labels: {label!r} holds a special token of the model; give it another name")
        self._fixed_ids = lru_cache(maxsize=1024)(self._tokenise_fixed)
        self._data_ids = lru_cache(maxsize=4)(lambda text: tuple(self.plain_ids(text)))  # a post's rows share its data
        self._head_texts: dict[tuple[Setting, Task], str] = {}
        self._head_lengths: dict[tuple[Setting, tuple[int, int]], int] = {}
        self._text_lengths: dict[str, int] = {}

    @property
    def pad_id(self) -> int:
        """The token id that fills rows up; it is never attended to."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else self.end_of_turn[-1]

    def row(self, post: Post, task: Task, response: str | None = None) -> TextRow:
        """Encodes a post's prompt for `task`, and `response` behind it when one is given.

        Args:
            post: the post; its picture is not opened.
            task: which prompt to use.
            response: the target text without end of turn; None for a question to be answered.
        """
        head, tail = self._prefix(post, task)
        response_ids = () if response is None else self.response_ids(response)
        return TextRow(post, task, head, tail, response_ids)

    def question(self, post: Post, prompt: RenderedPrompt) -> TextRow:
        """Encodes a prompt that is rendered already, a teacher's; its row counts as one of the reasoning task.

        Args:
            post: whose picture goes with it; the picture is not opened.
            prompt: the text.
        """
        head, tail = self._around(prompt)
        return TextRow(post, "reasoning", head, tail, ())

    def tail(self, post: Post, task: Task) -> tuple[int, ...]:
        """The token ids of a post's prompt behind its picture."""
        return self._prefix(post, task)[1]

    def response_ids(self, response: str) -> tuple[int, ...]:
        """The token ids of a target text, end of turn included."""
        return (*self.plain_ids(response), *self.end_of_turn)

    def head_text(self, setting: Setting, task: Task) -> str:
        """The first piece of every prefix of a task: it holds the picture's placeholder and nothing of a post."""
        key = (setting, task)
        if key not in self._head_texts:
            sample = Post("", "?", Path(), "?" if setting == "masc" else None)
            self._head_texts[key] = self._prefix(sample, task)[0]
        return self._head_texts[key]

    def head_tokens(self, setting: Setting, width: int, height: int) -> int:
        """Tokens of the first piece with a picture of this size.

        Args:
            setting: Whose prompts.
            width: Of the upright picture, in pixels.
            height: Likewise.
        """
        size = self._squeezed(width, height)
        if (setting, size) not in self._head_lengths:
            self._head_lengths[setting, size] = self._count_head(self.head_text(setting, "reasoning"), size)
        return self._head_lengths[setting, size]

    def fingerprint(self) -> dict[str, str]:
        """What token ids and picture tokens depend on beside the posts; equal fingerprints encode equally."""
        prompts = [get_prompt(setting, task).hash for setting in ("msc", "masc") for task in TASKS]
        pictures = self.processor.image_processor.to_dict()
        pictures |= {"image_size": self.image_size, "max_aspect_ratio": self._max_ratio}
        return {
            "prompts": _short("/".join([*prompts, *self.labels])),
            "chat_template": _short(str(self.processor.chat_template) + ("/pad" if self._pad_end else "")),
            "vocabulary": vocabulary_digest(self.tokenizer),
            "pictures": _short(json.dumps(pictures, sort_keys=True, default=str)),
        }

    def head(self, row: TextRow) -> EncodedHead:
        """Opens the row's picture and encodes it with the first piece of the prefix.

        Raises:
            InputError: the picture cannot be read.
        """
        encoded = self._encode_head(row.head, self.picture(row.post))
        shape = encoded["input_ids"].shape
        per_token = {key: value[0] for key, value in encoded.items() if value.shape == shape}
        per_token.pop("attention_mask", None)
        vision = {key: value for key, value in encoded.items() if value.shape != shape}
        return EncodedHead(per_token, vision)

    def picture(self, post: Post) -> Image.Image:
        """Opens a post's picture in the size in which the processor is given it.

        Raises:
            InputError: the picture cannot be read.
        """
        picture = load_image(post.image)
        size = self._squeezed(*picture.size)
        return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)

    def _squeezed(self, width: int, height: int) -> tuple[int, int]:
        """The size in which a picture is given to the processor: mostly its own."""
        return self.image_size or within_ratio(width, height, self._max_ratio)

    def _encode_head(self, head: str, picture: Image.Image) -> Any:
        try:
            encoded = self._pictures_processor(text=[head], images=[picture], return_tensors="pt")
        except Exception as error:  # settings that do not go together end anywhere in transformers
            if is_out_of_memory(error):
                raise
            raise InputError(
                f"{self._name}: its processor cannot encode a picture of {picture.width} x {picture.height} pixels "
                f"({first_line(error) or type(error).__name__}): take the processor and the chat template of the model"
            ) from error
        if (largest := int(encoded["input_ids"].max())) > self._last_id:  # as a post-processor may add
            raise InputError(f"{self._name}: its tokenizer writes token {largest}, and the last one is {self._last_id}")
        return encoded

    def _count_head(self, head: str, size: tuple[int, int]) -> int:
        count = getattr(self._pictures_processor, "_get_num_multimodal_tokens", None)
        if count is None:  # a processor that cannot count without looking is given a blank picture
            return int(self._encode_head(head, Image.new("RGB", size))["input_ids"].shape[1])
        small = (64, 64)
        if head not in self._text_lengths:
            whole = self._encode_head(head, Image.new("RGB", small))["input_ids"].shape[1]
            self._text_lengths[head] = int(whole) - int(count(image_sizes=[small])["num_image_tokens"][0])
        return self._text_lengths[head] + int(count(image_sizes=[(size[1], size[0])])["num_image_tokens"][0])

    def _prefix(self, post: Post, task: Task) -> tuple[str, tuple[int, ...]]:
        return self._around(get_prompt(post.setting, task).render(post, self.labels))

    def _around(self, prompt: RenderedPrompt) -> tuple[str, tuple[int, ...]]:
        """The first piece of a prefix as text, and the token ids of the rest."""
        head, *pieces = self._pieces(prompt)
        tail: list[int] = []
        for text, is_data in pieces:
            tail.extend(self._data_ids(text) if is_data else self._fixed_ids(text))
        if self._picture_id in tail:
            raise InputError(
                f"{self._name}: its chat template puts a picture behind the post's text; take that of the model"
            )
        return head[0], tuple(tail)

    def plain_ids(self, text: str) -> list[int]:
        """The token ids of `text` as data: special tokens that it spells are tokenised as ordinary characters.

        Raises:
            InputError: the tokenizer has no other way to write a character of it than as a special token.
        """
        return self._plain.ids(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a response up to its end of turn."""
        ids = self.until_end(ids)
        if self.is_ended(ids):
            ids.pop()
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def until_end(self, ids: Sequence[int]) -> list[int]:
        """A response up to and with the first token that ends it; the whole of one that was cut off."""
        ends = (self.end_of_turn[-1], self.pad_id)
        stop = next((index for index, token in enumerate(ids, start=1) if token in ends), len(ids))
        return list(ids[:stop])

    def is_ended(self, ids: Sequence[int]) -> bool:
        """Whether a response was written to its end; False when it was cut off."""
        return bool(ids) and ids[-1] in (self.end_of_turn[-1], self.pad_id)

    def _pieces(self, prompt: RenderedPrompt) -> list[tuple[str, bool]]:
        """The chat template around a prompt, as (text, is data), ours and the post's alternating."""
        data = [segment.text for segment in prompt.segments if segment.is_data]
        marked = iter(_MARK.format(index) for index in range(len(data)))
        text = "".join(next(marked) if segment.is_data else segment.text for segment in prompt.segments)
        rendered = self._render([{"type": "image"}, {"type": "text", "text": text}])
        pieces = _MARKS.split(rendered)
        if [int(piece) for piece in pieces[1::2]] != list(range(len(data))) or "\ue000" in "".join(pieces[::2]):
            raise InputError(f"{self._name}: its chat template does not write a post's text once; take the model's")
        return [(data[int(piece)], True) if odd % 2 else (piece, False) for odd, piece in enumerate(pieces)]

    def _render(self, content: list[dict[str, str]], answer: str | None = None) -> str:
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        try:
            rendered: str = self.processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer is None
            )
        except (TemplateError, ValueError, TypeError, RecursionError, ArithmeticError, LookupError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{self._name}: its chat template cannot be used ({reason}); take that of the model"
            ) from error
        if len(rendered) > _MAX_RENDERED + sum(len(part.get("text", "")) for part in content):
            raise InputError(f"{self._name}: its chat template writes {len(rendered):,} characters; take the model's")
        return rendered

    def _check_ends(self) -> None:
        """Refuses a tokenizer without an end of turn, or in which that, padding or the unknown stands for a picture."""
        if None in self.end_of_turn:
            raise InputError(f"{self._name}: its tokenizer names no eos_token; take that of the model")
        used = (*self.end_of_turn, self.pad_id, self.tokenizer.unk_token_id)
        if self._picture_id is not None and self._picture_id in used:
            token = self.tokenizer.convert_ids_to_tokens(self._picture_id)
            raise InputError(
                f"{self._name}: its tokenizer ends or fills up rows, or writes the unknown, with {token!r}, which "
                "stands for a picture; take that of the model"
            )

    def _find_end_of_turn(self) -> tuple[int, ...]:
        """What the chat template writes behind an answer, up to the token at which generation stops."""
        rendered = self._render([{"type": "text", "text": "?"}], answer=_MARK.format(0))
        ids = self._tokenise_fixed(_MARKS.split(rendered)[-1])
        special = set(self.tokenizer.all_special_ids)
        for index, token in enumerate(ids):
            if token in special:
                return ids[: index + 1]
        return (self.tokenizer.eos_token_id,)

    def _tokenise_fixed(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def within_ratio(width: int, height: int, limit: int) -> tuple[int, int]:
    """The size of the same area, rounded down, whose longer side is at most `limit` times the shorter one.

    Args:
        width: In pixels.
        height: Likewise.
        limit: At least 1; a picture within it keeps its size.
    """
    short, long = sorted((width, height))
    if long <= limit * short:
        return width, height
    area = width * height
    short = math.isqrt((area - 1) // limit) + 1  # the root of area / limit, rounded up
    long = max(short, area // short)
    return (long, short) if width > height else (short, long)


def _token_budget(image_processor: Any) -> int | None:
    """The most tokens that a picture may have, of a processor that counts pixels as Qwen's do; None of another one.

    Such a processor shrinks both sides alike, but none below one token: a picture that is more elongated than the
    budget has tokens ends up above it. (One whose least pixels nearly equal its most can still round above it.)
    """
    size, merge = getattr(image_processor, "size", None), getattr(image_processor, "merge_size", None)
    if merge is None or not size or not size.get("shortest_edge") or not size.get("longest_edge"):
        return None
    return max(1, int(size["longest_edge"]) // (image_processor.patch_size * merge) ** 2)


def _with_budget_for(processor: Any, size: tuple[int, int]) -> Any:
    """The processor, with a pixel budget that leaves pictures of this size as they are."""
    if _token_budget(processor.image_processor) is None:
        return processor
    widened = copy.copy(processor)
    widened.image_processor = copy.copy(processor.image_processor)
    pixels, given = size[0] * size[1], processor.image_processor.size
    budget = {
        "shortest_edge": min(pixels, int(given["shortest_edge"])),
        "longest_edge": max(pixels, int(given["longest_edge"])),
    }
    widened.image_processor.size = type(given)(**budget)
    return widened


def vocabulary_digest(tokenizer: Any) -> str:
    """A digest of a tokenizer's vocabulary: equal digests mean that token ids mean the same."""
    entries = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return _short(entries)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
