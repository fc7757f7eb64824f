"""Reasoning over an epoch: rationales go in batch by batch, a JSON-ready report comes out."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from mulcot.metrics.functional.text import corpus_bleu, rouge_l, sentence_bleu
from mulcot.types import RATIONALE_KEYS, Answer, InputError, Rationale, RationaleRecord


class ReasoningReport:
    """How often the replies are rationales, how close to the references, and whether their Prediction holds.

    Text is compared without the JSON around it: the five values in fixed order, joined by a blank. The keys and
    punctuation that all rationales share would raise every score. A reply that is no rationale is compared as it was
    written; it is never left out.

    Args:
        labels: the label set; gold labels are checked against it.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self._answers: list[Answer] = []
        self._references: list[RationaleRecord | None] = []
        self._golds: list[str | None] = []

    def update(
        self,
        answers: Sequence[Answer],
        references: Sequence[RationaleRecord | None],
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
            Over posts with a reference, in [0, 1]: `bleu` (BLEU-4 of the corpus), `sentence_bleu` and `rouge_l` (mean
            over posts). Over all posts, in [0, 1]: `parse_rate` (replies that are a rationale) and
            `agreement_with_answer` (the Prediction is the classification answer). Over posts with a gold label:
            `agreement_with_gold` (the Prediction is the gold label). A reply that is no rationale agrees with nothing.
            Counts: `posts`, `golds`, `references`, `references_predicted` and `references_explained` (by the teacher's
            way to the label), `empty_predictions` and `empty_references` (texts compared that hold nothing).
            `mean_words` of the replies and `mean_reference_words` of the references: length in words.
        """
        texts = [_reply_text(answer) for answer in self._answers]
        # (reply, reference, who found the label), for the posts that have a reference.
        pairs = [
            (text, _rationale_text(reference.rationale), reference.source)
            for text, reference in zip(texts, self._references, strict=True)
            if reference is not None
        ]
        sources = [source for _, _, source in pairs]
        return {
            **_text_scores([reply for reply, _, _ in pairs], [reference for _, reference, _ in pairs]),
            **self._agreement(),
            "posts": len(self._answers),
            "golds": sum(gold is not None for gold in self._golds),
            "references": len(pairs),
            "references_predicted": sources.count("teacher-predicted"),
            "references_explained": sources.count("teacher-explained"),
            "empty_predictions": sum(not reply.strip() for reply, _, _ in pairs),
            "empty_references": sum(not reference.strip() for _, reference, _ in pairs),
            "mean_words": _mean([len(text.split()) for text in texts]),
            "mean_reference_words": _mean([len(reference.split()) for _, reference, _ in pairs]),
        }

    def _agreement(self) -> dict[str, float | None]:
        predictions = [answer.rationale.prediction if answer.rationale else None for answer in self._answers]
        answered = zip(predictions, self._answers, strict=True)
        known = [(said, gold) for said, gold in zip(predictions, self._golds, strict=True) if gold is not None]
        return {
            "parse_rate": _mean([prediction is not None for prediction in predictions]),
            "agreement_with_gold": _mean([said == gold for said, gold in known]),
            "agreement_with_answer": _mean([prediction == answer.label for prediction, answer in answered]),
        }


def _text_scores(replies: list[str], references: list[str]) -> dict[str, float | None]:
    if not references:
        return {"bleu": None, "sentence_bleu": None, "rouge_l": None}
    return {
        "bleu": corpus_bleu(replies, references),
        "sentence_bleu": _mean(sentence_bleu(replies, references)),
        "rouge_l": _mean(rouge_l(replies, references)),
    }


def _rationale_text(rationale: Rationale) -> str:
    return " ".join(getattr(rationale, name) for name in RATIONALE_KEYS.values())


def _reply_text(answer: Answer) -> str:
    return answer.reply if answer.rationale is None else _rationale_text(answer.rationale)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
