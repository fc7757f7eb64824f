"""Dialogues that an earlier run led to their end: found again by one look-up, without asking, rendering or parsing."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version

from mulcot.prompts import get_prompt
from mulcot.teachers.base import Teacher
from mulcot.teachers.settled import Conclusion
from mulcot.teachers.store import LabelStore
from mulcot.types import Post
from stages.dialogue import SETTINGS, USES, image_sha256
from stages.outcomes import Outcome, Rules


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
        self._applies = rules.rationales_per_post == 1 and not rules.filters and not store.has_imported()
        self._found: dict[Post, Conclusion] = {}
        common = {
            "mulcot": version("mulcot"),
            "teacher": teacher.name,
            "parameters": dict(teacher.parameters),
            "prompts": [get_prompt(setting, use).hash for setting in SETTINGS for use in USES.values()],
            "rules": [rules.labels, rules.max_reasks, rules.accept_unlabelled],
        }
        self._common = hashlib.sha256(json.dumps(common, sort_keys=True).encode())

    def find(self, post: Post) -> Conclusion | None:
        """How the dialogue about a post ended, None where there was none or it must be led again.

        Raises:
            InputError: The post's picture cannot be read.
        """
        if not self._applies:
            return None
        if post not in self._found:
            found = self._store.concluded(self._fingerprint(post, image_sha256(post)))
            if found is None:
                return None
            self._found[post] = found  # an estimate of what is left looks for it first, then the run
        return self._found[post]

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
