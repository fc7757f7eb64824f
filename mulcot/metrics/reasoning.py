"""Reasoning over an epoch: rationales go in batch by batch, a JSON-ready report comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final, Protocol

from mulcot.metrics.functional import text as scores
from mulcot.types import RATIONALE_KEYS, Answer, InputError, Rationale

if TYPE_CHECKING:
    from mulcot.metrics.functional.text import Encoder
    from mulcot.metrics.wordnet import WordNet

TEACHER_SOURCES: Final = ("teacher-predicted", "teacher-explained")
"""The two ways of a teacher to a label: it found the label itself, or was given it and explained it."""
LEFT_TO_EVAL: Final = "not computed here; `mulcot eval` computes it from the prediction file"


class Reference(Protocol):
    """A rationale to compare with; a `RationaleRecord` is one."""

    @property
    def post_id(self) -> str:
        """The post that it explains."""

    @property
    def rationale(self) -> Rationale:
        """The five fields."""

    @property
    def source(self) -> str:
        """Who found the label: a source of rationale records, or another word where that is not known."""


@dataclass(frozen=True)
class _Pair:
    """A reply and its reference, as texts, and whether its Prediction is the gold label (None: not known)."""

    reply: str
    reference: str
    source: str
    agrees: bool | None


class ReasoningReport:
    """How often the replies are rationales, how close to the references, and whether their Prediction holds.

    Text is compared without the JSON around it: the five values in fixed order, joined by a blank. The keys and
    punctuation that all rationales share would raise every score. A reply that is no rationale is compared as it was
    written; it is never left out.

    Args:
        labels: the label set; gold labels are checked against it.
        wordnet: the synonyms for METEOR; without them METEOR is None.
        encoder: embeds texts for Sim; without it Sim is None.
        unavailable: why a metric is None, by metric; what is not named was left to `mulcot eval`.
    """

    def __init__(
        self,
        labels: Sequence[str],
        wordnet: WordNet | None = None,
        encoder: Encoder | None = None,
        unavailable: Mapping[str, str] | None = None,
    ) -> None:
        self.labels = tuple(labels)
        self._wordnet = wordnet
        self._encoder = encoder
        reasons = dict.fromkeys(("meteor", "sim"), LEFT_TO_EVAL) | dict(unavailable or {})
        given = {"meteor": wordnet, "sim": encoder}
        self._unavailable = {name: reason for name, reason in reasons.items() if given[name] is None}
        self._answers: list[Answer] = []
        self._references: list[Reference | None] = []
        self._golds: list[str | None] = []

    def update(
        self,
        answers: Sequence[Answer],
        references: Sequence[Reference | None],
        golds: Sequence[str | None],
    ) -> None:
        """Adds posts whose rationale was asked for.

        Args:
            answers: what the model said, one a post.
            references: the teacher's rationale of the same post, None where there is none.
            golds: the gold label of the same post, None where it is not known.

        Raises:
            InputError: a gold label is not one of the label set; nothing is added then.
            ValueError: the three differ in length, or a reference is another post's; nothing is added then.
        """
        for answer, reference, gold in zip(answers, references, golds, strict=True):
            if reference is not None and reference.post_id != answer.post_id:
                raise ValueError(f"the answer is to post {answer.post_id}, its reference to post {reference.post_id}")
            if gold is not None and gold not in self.labels:
                allowed = ", ".join(self.labels)
                raise InputError(f"post {answer.post_id}: the gold label is {gold!r}; it must be one of {allowed}")
        self._answers += answers
        self._references += references
        self._golds += golds

    def compute(self) -> dict[str, Any]:
        """The report over everything added so far; a score over no posts at all is None.

        Returns:
            Over posts with a reference: `bleu` (BLEU-4 of the corpus), `sentence_bleu` (mean of unsmoothed sentence
            BLEU, what the paper's code reports), `rouge_l`, `meteor` (means over posts), all in [0, 1], and `sim` (mean
            cosine of sentence embeddings, in [-1, 1]). `by_source`: source of the reference → these scores,
            `agreement_with_gold` and `posts`, always for both ways of the teacher: an explained reference
            was written with the gold label in view. `unavailable`: metric → why it is None.
            Over all posts, in [0, 1]: `parse_rate` (replies that are a rationale), `parse_rate_per_field` (key →
            replies that hold the field, see `held_fields`) and `agreement_with_answer` (the Prediction is the
            classification answer, over posts that have one). Over posts with a gold label: `agreement_with_gold`. A
            reply that is no rationale agrees with nothing.
            `distinct_1`, `distinct_2` of all replies together, in [0, 1]. `mean_words` of the replies and
            `mean_reference_words` of the references: length in words. Counts: `posts`, `golds`, `references`,
            `references_predicted` and `references_explained` (by the teacher's way to the label), `empty_predictions`
            and `empty_references` (texts compared that hold nothing).
        """
        texts = [_reply_text(answer) for answer in self._answers]
        pairs = self._pairs(texts)
        compared = _Compared(pairs, self._wordnet, self._encoder)
        sources = [pair.source for pair in pairs]
        shown = dict.fromkeys([*TEACHER_SOURCES, *sources])
        return {
            **compared.scores(range(len(pairs))),
            "by_source": {source: compared.of_source(source) for source in shown},
            "unavailable": dict(self._unavailable),
            **self._agreement(),
            "distinct_1": scores.distinct(texts, 1) if texts else None,
            "distinct_2": scores.distinct(texts, 2) if texts else None,
            "posts": len(self._answers),
            "golds": sum(gold is not None for gold in self._golds),
            "references": len(pairs),
            "references_predicted": sources.count("teacher-predicted"),
            "references_explained": sources.count("teacher-explained"),
            "empty_predictions": sum(not pair.reply.strip() for pair in pairs),
            "empty_references": sum(not pair.reference.strip() for pair in pairs),
            "mean_words": _mean([len(text.split()) for text in texts]),
            "mean_reference_words": _mean([len(pair.reference.split()) for pair in pairs]),
        }

    def _pairs(self, texts: Sequence[str]) -> list[_Pair]:
        return [
            _Pair(text, _rationale_text(reference.rationale), reference.source, _agrees(answer, gold))
            for text, answer, reference, gold in zip(texts, self._answers, self._references, self._golds, strict=True)
            if reference is not None
        ]

    def _agreement(self) -> dict[str, Any]:
        predictions = [_prediction(answer) for answer in self._answers]
        known = [_agrees(answer, gold) for answer, gold in zip(self._answers, self._golds, strict=True)]
        # A file of replies alone has no classification answers.
        answered = [
            said == answer.label for said, answer in zip(predictions, self._answers, strict=True) if answer.label
        ]
        held = [self._held(answer) for answer in self._answers]
        return {
            "parse_rate": _mean([prediction is not None for prediction in predictions]),
            "parse_rate_per_field": {key: _mean([key in keys for keys in held]) for key in RATIONALE_KEYS},
            "agreement_with_gold": _mean([agrees for agrees in known if agrees is not None]),
            "agreement_with_answer": _mean(answered),
        }

    def _held(self, answer: Answer) -> frozenset[str]:
        if answer.rationale is not None:
            return frozenset(RATIONALE_KEYS)
        # With generation comes torch, which reports and `--help` should not cost.
        from mulcot.generation.parsing import held_fields

        return held_fields(answer.reply, self.labels)


class _Compared:
    """The scores of every pair, each computed once; groups of pairs are means over them.

    Args:
        pairs: replies and references.
        wordnet: see `ReasoningReport`.
        encoder: see `ReasoningReport`.
    """

    def __init__(self, pairs: Sequence[_Pair], wordnet: WordNet | None, encoder: Encoder | None) -> None:
        self._pairs = pairs
        replies, references = [pair.reply for pair in pairs], [pair.reference for pair in pairs]
        self._bleu = scores.bleu_counts(replies, references) if pairs else []
        by_post: dict[str, Callable[[], list[float]]] = {
            "sentence_bleu": lambda: [scores.sentence_bleu_of(counts) for counts in self._bleu],
            "rouge_l": lambda: scores.rouge_l(replies, references),
        }
        if wordnet is not None:
            by_post["meteor"] = lambda: scores.meteor(replies, references, wordnet)
        if encoder is not None:
            by_post["sim"] = lambda: scores.sim(replies, references, encoder)
        self._by_post = {name: score() if pairs else [] for name, score in by_post.items()}

    def scores(self, places: Sequence[int]) -> dict[str, float | None]:
        """The text scores over some of the pairs."""
        named = {name: [values[place] for place in places] for name, values in self._by_post.items()}
        return {
            "bleu": scores.corpus_bleu_of([self._bleu[place] for place in places]) if places else None,
            **{name: _mean(named.get(name, [])) for name in ("sentence_bleu", "rouge_l", "meteor", "sim")},
        }

    def of_source(self, source: str) -> dict[str, Any]:
        """The scores over the pairs whose reference has this source."""
        places = [place for place, pair in enumerate(self._pairs) if pair.source == source]
        known = [pair.agrees for pair in self._pairs if pair.source == source and pair.agrees is not None]
        return {**self.scores(places), "agreement_with_gold": _mean(known), "posts": len(places)}


def _prediction(answer: Answer) -> str | None:
    return answer.rationale.prediction if answer.rationale else None


def _agrees(answer: Answer, gold: str | None) -> bool | None:
    return None if gold is None else _prediction(answer) == gold


def _rationale_text(rationale: Rationale) -> str:
    return " ".join(getattr(rationale, name) for name in RATIONALE_KEYS.values())


def _reply_text(answer: Answer) -> str:
    return answer.reply if answer.rationale is None else _rationale_text(answer.rationale)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
