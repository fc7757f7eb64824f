"""Dialogues that an earlier run led to their end: found again by one look-up, without asking, rendering or parsing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import islice, product
from typing import Final

from mulcot.prompts import get_prompt
from mulcot.teachers.base import Teacher
from mulcot.teachers.settled import Conclusion
from mulcot.teachers.store import LabelStore
from mulcot.types import Post
from stages.dialogue import SETTINGS, Dialogue, image_sha256
from stages.outcomes import PROMPT_USES, Outcome, Rules

_LOOK_UP: Final = 500
"""Posts that one query of an estimate looks for."""


class Replay:
    """Knows the conclusions that a store holds. What it does not find, the dialogue replays reply by reply.

    A conclusion is about all that a dialogue depends on: the post with its picture and gold label, the teacher, the
    prompts, the rules, and the version of mulcot that judged. With filters, several rationales of a post or records
    that were brought in, a dialogue depends on more than that, and nothing is found.

    Args:
        teacher: Who is asked.
        store: Where conclusions are kept.
        rules: How dialogues are led.
    """

    def __init__(self, teacher: Teacher, store: LabelStore, rules: Rules) -> None:
        self._store = store
        self._samples = rules.rationales_per_post
        self._applies = rules.rationales_per_post == 1 and not rules.filters and not store.has_imported()
        self._found: dict[str, tuple[Post, Conclusion]] = {}
        common = {
            "mulcot": version("mulcot"),
            "teacher": teacher.name,
            "parameters": dict(teacher.parameters),
            "prompts": [get_prompt(setting, use).hash for setting in SETTINGS for use in PROMPT_USES],
            "rules": [rules.labels, rules.max_reasks, rules.accept_unlabelled, rules.prompt],
        }
        self._common = hashlib.sha256(json.dumps(common, sort_keys=True).encode())

    def find(self, posts: Sequence[Post]) -> list[Conclusion | None]:
        """How the dialogue about each post ended, None where there was none or it must be led again.

        Args:
            posts: a batch, for which there is one look-up. What was found is remembered: an estimate of what is left
                looks for it first, then the run.

        Raises:
            InputError: A post's picture cannot be read.
        """
        if not self._applies:
            return [None] * len(posts)
        wanted = {self._fingerprint(post, image_sha256(post)): post for post in posts if self._known(post) is None}
        if wanted:
            for fingerprint, found in self._store.concluded(list(wanted)).items():
                post = wanted[fingerprint]
                self._found[post.id] = (post, found)
        return [self._known(post) for post in posts]

    def unanswered(self, posts: Iterator[Post], dialogue: Dialogue) -> tuple[int, int]:
        """How many first questions about posts have no reply yet, and the length of their prompts together.

        Raises:
            InputError: A post's picture cannot be read.
        """
        lengths: dict[str, int] = {}
        while some := list(islice(posts, _LOOK_UP)):
            left = [post for post, concluded in zip(some, self.find(some), strict=True) if concluded is None]
            for post, sample in product(left, range(self._samples)):
                question = dialogue.first_question(post, sample)
                if question is not None and not self._store.is_answered(question[0], 0):
                    lengths[question[0]] = question[1]
        return len(lengths), sum(lengths.values())

    def _known(self, post: Post) -> Conclusion | None:
        """What was found before. By id, since hashing a whole post, path and all, takes longer than comparing it."""
        known = self._found.get(post.id)
        return known[1] if known is not None and (known[0] is post or known[0] == post) else None

    def conclusion(self, outcome: Outcome, model: str) -> tuple[str, Conclusion] | None:
        """What a later run may go by, with its fingerprint; None where the dialogue did not end in a rationale."""
        record = outcome.record
        if not self._applies or record is None or outcome.is_imported:
            return None
        asks = tuple((ask.key, ask.attempt) for ask in outcome.asks)
        concluded = Conclusion(record.source, outcome.first_prediction, model, outcome.prompt_hash, asks)
        return self._fingerprint(outcome.post, outcome.image_sha256), concluded

    def _fingerprint(self, post: Post, image: str) -> str:
        whole = self._common.copy()
        whole.update(json.dumps([post.id, post.text, post.aspect, post.label, image]).encode())
        return whole.hexdigest()
