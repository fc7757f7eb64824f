"""A teacher for the embedded data set that needs no model: it knows how each post was made.

It stands in for a large model in the demo and in tests, with a large model's weaknesses: it misjudges some posts, it
sometimes argues against the label that it was asked to explain, and it sometimes replies in a broken form.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mulcot.demo_posts import TONES, DemoPost, Tone, read_facts, rule
from mulcot.demo_scenes import MOODS, Mood
from mulcot.teachers.base import TeacherReply, TeacherRequest, TeacherSilentError
from mulcot.types import RATIONALE_KEYS, InputError, MissingInputError, Rationale

_VERSION: Final = 1
"""Part of the parameters: a change of wording makes other replies, so stored ones must not stand for them."""

_TONED_TEXT: Final = (
    "The text calls {aspect} {word}, which is clear {judgement} and a {tone} tone.",
    "In the text {aspect} is {word}, so the words alone sound {tone}.",
    "The writer finds {aspect} {word}; taken alone, these words are {tone}.",
    "By its words {aspect} is {word}, and that is a {tone} tone.",
)
_PLAIN_TEXT: Final = (
    "The text only says {aspect} {word}, which is neutral.",
    "That {aspect} {word} is plain news, so neutral.",
    "The writer notes {aspect} {word} and keeps a neutral tone.",
    "By its words {aspect} {word}, and that is neutral.",
)
_VAGUE_TEXT: Final = (
    "The text seems {tone} about {aspect}, as far as its words show.",
    "Towards {aspect} the wording comes across as {tone} when taken alone.",
)
_IMAGE: Final[dict[Mood, tuple[str, ...]]] = {
    "sunny": (
        "The picture shows a bright sun over a {place}: positive.",
        "Blue sky and sun above a {place} give a positive picture.",
        "A sunny scene, a {place} under blue sky, looks positive.",
        "In the picture a {place} lies in sun, so positive.",
    ),
    "grey": (
        "The picture shows grey clouds over a {place}: neutral.",
        "Flat grey sky above a {place} gives a neutral picture.",
        "An overcast grey scene, a {place} under clouds, looks neutral.",
        "In the picture a {place} lies under grey, so neutral.",
    ),
    "stormy": (
        "The picture shows dark stormy rain over a {place}: negative.",
        "Dark sky and rain above a {place} give a negative picture.",
        "A stormy scene, a {place} in heavy rain, looks negative.",
        "In the picture a {place} lies in rain, so negative.",
    ),
}
_RESOLUTION: Final[dict[str, tuple[str, ...]]] = {
    "picture": (
        "The text takes no side, so the {mood} picture decides the sentiment.",
        "There is no conflict: plain words leave it to the {mood} picture, which decides.",
        "With neutral words, the {mood} picture decides what the post means.",
    ),
    "quiet": (
        "Neither the plain words nor the grey picture leans, so nothing is in conflict.",
        "Text and picture are both neutral here, so there is no conflict.",
        "With plain words under a grey sky, both agree on a neutral post.",
    ),
    "agree": (
        "Text and picture are both {label} here, so there is no conflict.",
        "The {mood} picture supports the words, so both agree on a {label} post.",
        "The words fit the {mood} picture, and both agree without any conflict.",
    ),
    "praise over storm": (
        "They conflict: the praise is ironic over a stormy scene, so the picture decides.",
        "Praise over a stormy scene is irony, so here the picture decides.",
        "Words and picture conflict; the storm makes the praise ironic, the picture decides.",
    ),
    "blame under sun": (
        "They conflict: the blame is not serious under the sun, so the picture decides.",
        "Blame under a bright sun is only playful, so here the picture decides.",
        "Words and picture conflict; the sun makes the blame playful, the picture decides.",
    ),
    "irony missed": (
        "They conflict, but the words seem meant seriously, so the text decides.",
        "Words and picture conflict; the words are more direct, so the text decides.",
    ),
    "tone": (
        "The grey picture takes no side, so the words of the text decide.",
        "There is no conflict: a grey picture lets the words of the text decide.",
        "With a neutral picture, the words of the text decide what is meant.",
    ),
    "two aspects": (
        "Only the clause on {aspect} decides, not the one on {other}.",
        "The grey picture and {other} stay aside; the clause on {aspect} decides.",
        "Under a grey picture the clause on {aspect} decides, not {other}.",
    ),
}
_CONCLUSION: Final[dict[str, tuple[str, ...]]] = {
    "picture": (
        "So the sentiment towards {aspect} is {label}, as the picture shows.",
        "Led by the picture, the post is {label} towards {aspect} overall.",
        "Because of the picture, the sentiment towards {aspect} comes out {label}.",
    ),
    "text": (
        "So the sentiment towards {aspect} is {label}, as the words say.",
        "Led by its words, the post is {label} towards {aspect} overall.",
        "Because of the words, the sentiment towards {aspect} comes out {label}.",
    ),
    "both": (
        "Taken together, text and picture make the sentiment towards {aspect} {label}.",
        "So the sentiment towards {aspect} is {label}, as both of them show.",
        "Because text and picture agree, the sentiment towards {aspect} is {label}.",
    ),
}


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the oracle takes a post to be, rightly or wrongly; the label follows from it."""

    mood: Mood
    tone: Tone
    words: tuple[str, ...]
    """What it quotes for the tone; empty where nothing in the text bears it out."""
    trusts_text: bool = False
    """Whether it takes the words at face value though the picture says the contrary."""

    @property
    def label(self) -> Tone:
        return self.tone if self.trusts_text else rule(self.mood, self.tone)


class OracleTeacher:
    """Writes the rationales of demo posts from the facts of their making.

    Every reply is a pure function of the seed, the post id, the use, the label and the attempt. Whether it misjudges
    a post depends on the post alone: asking again does not cure it.
    """

    def __init__(
        self,
        facts: Path,
        error_rate: float = 0.15,
        malformed_rate: float = 0.03,
        stubborn_rate: float = 0.05,
        seed: int = 0,
    ) -> None:
        """Reads the facts.

        Args:
            facts: The `facts.jsonl` that `write_demo_posts` wrote.
            error_rate: The share of posts that `predict` gives a wrong label, with a plausible rationale.
            malformed_rate: The share of first replies that are no rationale: cut off, lacking a field, or empty.
            stubborn_rate: The share of first explanations whose own Prediction is not the label to be explained.
            seed: Other seeds err on other posts and use other words.

        Raises:
            MissingInputError: `facts` does not exist.
            InputError: a rate is not between 0 and 1, or `facts` is damaged.
        """
        rates = {"error_rate": error_rate, "malformed_rate": malformed_rate, "stubborn_rate": stubborn_rate}
        for key, rate in rates.items():
            if not 0 <= rate <= 1:
                raise InputError(f"demo-oracle: {key} is {rate}, it must be between 0 and 1")
        if not facts.is_file():
            raise MissingInputError(f"{facts}: no facts of demo posts; `mulcot run --config demo.yaml` makes them")
        self._posts = read_facts(facts)
        self._rates = rates
        self._seed = seed
        self._facts_hash = hashlib.sha256(facts.read_bytes()).hexdigest()

    @property
    def name(self) -> str:
        """The name under which its rationales are recorded."""
        return "demo-oracle"

    @property
    def answers_by_id(self) -> bool:
        """What it says depends on how the post of this id was made."""
        return True

    @property
    def parameters(self) -> Mapping[str, str | int | float]:
        """The rates, the seed and the facts: everything beside the request that a reply depends on."""
        return {**self._rates, "seed": self._seed, "facts_sha256": self._facts_hash, "version": _VERSION}

    async def complete(self, request: TeacherRequest) -> TeacherReply:
        """Answers one request; tokens are counted as words.

        Raises:
            TeacherSilentError: the post is not one of the facts, or the label is none that a demo post can have.
        """
        post = self._posts.get(request.post.id)
        if post is None:
            raise TeacherSilentError(f"demo-oracle does not know the post {request.post.id!r}")
        if request.use == "explain" and request.label not in TONES:
            raise TeacherSilentError(f"demo-oracle cannot explain the label {request.label!r} of {post.post_id!r}")
        rng = self._random(post.post_id, request.use, request.label, request.attempt)
        first = request.attempt == 0
        malformed = rng.random() < self._rates["malformed_rate"] and first
        stubborn = rng.random() < self._rates["stubborn_rate"] and first
        reading = self._judge(post) if request.use == "predict" else _explain(rng, post, request.label, stubborn)
        rationale = _word(rng, post, reading)
        text = _break(rng, rationale) if malformed else _format(rng, rationale)
        return TeacherReply(text, len(request.prompt.text.split()), len(text.split()))

    def _random(self, *key: str | int | None) -> random.Random:
        return random.Random(json.dumps([_VERSION, self._seed, *key]))

    def _judge(self, post: DemoPost) -> _Reading:
        rng = self._random(post.post_id, "judgement")
        right = _right_reading(post)
        if rng.random() >= self._rates["error_rate"]:
            return right
        return rng.choice([reading for reading in _misreadings(post) if reading.label != post.label])


def _right_reading(post: DemoPost) -> _Reading:
    return _Reading(post.scene.mood, post.clause.tone, post.clause.evidence)


def _misreadings(post: DemoPost) -> list[_Reading]:
    """Every way to get one thing wrong: the mood, the tone, the irony, or which clause is about the aspect."""
    right = _right_reading(post)
    readings = [replace(right, mood=mood) for mood in MOODS if mood != right.mood]
    if right.mood != "grey" and right.tone not in ("neutral", right.label):
        readings.append(replace(right, trusts_text=True))
    if post.other is not None:
        # Swapped clauses explain a wrong tone better than a tone out of the air.
        return [*readings, replace(right, tone=post.other.tone, words=post.other.evidence)]
    return readings + [replace(right, tone=tone, words=()) for tone in TONES if tone != right.tone]


def _explain(rng: random.Random, post: DemoPost, label: str | None, stubborn: bool) -> _Reading:
    """A reading that leads to the label, the right one if it does; a stubborn one leads to another label."""
    right = _right_reading(post)
    if (right.label == label) != stubborn:
        return right
    fitting = [reading for reading in _misreadings(post) if (reading.label == label) != stubborn]
    if not fitting:
        # Both picture and text speak against the label: it takes two mistakes to defend it.
        fitting = [
            _Reading("grey", tone, words=post.clause.evidence if tone == right.tone else ())
            for tone in TONES
            if (tone == label) != stubborn
        ]
    return rng.choice(fitting)


def _word(rng: random.Random, post: DemoPost, reading: _Reading) -> Rationale:
    """The reading as four short sentences (6 to 14 words each) and its label."""
    case, decides = _case(post, reading)
    facts = {
        "aspect": post.aspect,
        "other": post.other.aspect if post.other else "",
        "word": rng.choice(reading.words) if reading.words else "",
        "judgement": "praise" if reading.tone == "positive" else "blame",
        "tone": reading.tone,
        "mood": reading.mood,
        "place": f"{post.scene.ground} with {post.scene.motif}",
        "label": reading.label,
    }
    about_text = _VAGUE_TEXT if not reading.words else _PLAIN_TEXT if reading.tone == "neutral" else _TONED_TEXT
    templates = (about_text, _IMAGE[reading.mood], _RESOLUTION[case], _CONCLUSION[decides])
    text, image, resolution, conclusion = (rng.choice(choices).format(**facts) for choices in templates)
    return Rationale(text, image, resolution, conclusion, reading.label)


def _case(post: DemoPost, reading: _Reading) -> tuple[str, str]:
    """How text and picture relate in this reading, and which of them decides: keys of the templates."""
    if reading.trusts_text:
        return "irony missed", "text"
    if reading.mood == "grey":
        if post.other is not None:
            return "two aspects", "text"
        return ("quiet", "both") if reading.tone == "neutral" else ("tone", "text")
    if reading.tone == "neutral":
        return "picture", "picture"
    if reading.tone == reading.label:
        return "agree", "both"
    return ("praise over storm" if reading.tone == "positive" else "blame under sun"), "picture"


def _fields(rationale: Rationale) -> dict[str, str]:
    return {key: getattr(rationale, name) for key, name in RATIONALE_KEYS.items()}


def _fenced(rationale: Rationale) -> str:
    return f"```json\n{json.dumps(_fields(rationale), indent=2)}\n```"


def _paragraphs(rationale: Rationale) -> str:
    return "\n\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in _fields(rationale).items())


def _headings(rationale: Rationale) -> str:
    return "\n\n".join(f"## {key}\n{value}" for key, value in _fields(rationale).items())


_FORMS: Final[tuple[tuple[Callable[[Rationale], str], float], ...]] = (
    (Rationale.to_json, 0.76),
    (_fenced, 0.12),
    (_paragraphs, 0.06),
    (_headings, 0.06),
)


def _format(rng: random.Random, rationale: Rationale) -> str:
    """A sound reply, in one of the forms that real models choose."""
    forms, weights = zip(*_FORMS, strict=True)
    form: Callable[[Rationale], str] = rng.choices(forms, weights)[0]
    return form(rationale)


def _break(rng: random.Random, rationale: Rationale) -> str:
    """A reply that is no rationale."""
    how = rng.choice(("cut off", "lacks a field", "empty"))
    if how == "cut off":
        written = rationale.to_json()
        return written[: rng.randint(len(written) // 4, len(written) * 3 // 4)]
    if how == "lacks a field":
        fields = _fields(rationale)
        del fields[rng.choice(list(fields))]
        return json.dumps(fields)
    return ""
