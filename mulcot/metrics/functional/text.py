"""How close written texts are to reference texts: BLEU and ROUGE-L, by their reference implementations.

Every function takes one prediction and one reference a post, in the same order. An empty text is a text like any other:
it matches nothing and scores 0, whichever of the two is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU


def corpus_bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """BLEU-4 of a whole corpus, in [0, 1]: n-grams are counted over all posts before precisions are taken.

    sacrebleu's defaults: tokenizer 13a, case kept, exponential smoothing.

    Source:
        Papineni et al. 2002; Post 2018 (sacrebleu).

    Raises:
        ValueError: there are no texts, or not as many predictions as references.
    """
    _check(predictions, references)
    return _share(_bleu().corpus_score(list(predictions), [_filled(references)]).score)


def sentence_bleu(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """BLEU-4 of every post by itself, in [0, 1].

    Smoothed exponentially; a text of fewer than four tokens is judged by the n-grams that it has.

    Raises:
        ValueError: there are no texts, or not as many predictions as references.
    """
    _check(predictions, references)
    bleu = _bleu(effective_order=True)
    pairs = zip(predictions, _filled(references), strict=True)
    return [_share(bleu.sentence_score(prediction, [reference]).score) for prediction, reference in pairs]


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """ROUGE-L F1 of every post, in [0, 1]: the longest common subsequence of words against both lengths.

    rouge-score's words are lower-cased runs of ASCII letters and digits, not stemmed: text in another script has none
    and scores 0.

    Source:
        Lin 2004.

    Raises:
        ValueError: there are no texts, or not as many predictions as references.
    """
    # rouge-score brings nltk along: half a second that only an evaluation should cost.
    from rouge_score.rouge_scorer import RougeScorer

    _check(predictions, references)
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(predictions, references, strict=True)
    return [float(scorer.score(reference, prediction)["rougeL"].fmeasure) for prediction, reference in pairs]


def _bleu(*, effective_order: bool = False) -> BLEU:
    """The scorer; `force` only stops it from warning that replies look tokenized already."""
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=effective_order, force=True)


def _filled(references: Sequence[str]) -> list[str]:
    """The references with a blank for an empty one, which sacrebleu would refuse; both have no tokens."""
    return [reference or " " for reference in references]


def _share(score: float) -> float:
    """A percentage as a share; equal texts come out a rounding error above 100."""
    return min(1.0, score / 100)


def _check(predictions: Sequence[str], references: Sequence[str]) -> None:
    if not references or len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions for {len(references)} references; one for each of at least one post"
        )
