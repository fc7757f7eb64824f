"""How close written texts are to reference texts, and how varied they are: BLEU, ROUGE-L, METEOR, Sim, Distinct.

Functions that compare take one prediction and one reference a post, in the same order. An empty text is a text like any
other: it matches nothing and scores 0, whichever of the two is empty. BLEU, METEOR and Distinct see the tokens of
sacrebleu's tokenizer 13a, case kept (METEOR lowers it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mulcot.metrics.wordnet import WordNet

    Encoder = Callable[[Sequence[str]], NDArray[np.float32]]
    """Texts → their embeddings, one row each, of length 1."""

_PAIRS: Final = 1024
"""Pairs that are embedded at a time, so that memory does not grow with their number."""
_TEXTS: Final = 1024
"""Texts after which the tokenizer forgets them."""


class BleuCounts(NamedTuple):
    """What BLEU counts of one post, by n from 1 to 4; over a corpus these add up."""

    right: list[int]
    """n-grams of the prediction that the reference has."""
    total: list[int]
    """n-grams of the prediction."""
    tokens: int
    """Tokens of the prediction."""
    reference_tokens: int
    """Tokens of the reference."""


def bleu_counts(predictions: Sequence[str], references: Sequence[str]) -> list[BleuCounts]:
    """What BLEU counts, post by post, by sacrebleu.

    Raises:
        ValueError: there are no texts, or not as many predictions as references.
    """
    from sacrebleu.metrics import BLEU

    _check(predictions, references)
    # `force` only stops it from warning that texts are tokenized already, `effective_order` from warning at all.
    bleu = BLEU(tokenize="none", effective_order=True, force=True)
    said, right = ((" ".join(_tokens(text)) for text in texts) for texts in (predictions, references))
    # sacrebleu would refuse an empty reference; a blank has no tokens either.
    scores = [bleu.sentence_score(one, [two or " "]) for one, two in zip(said, right, strict=True)]
    return [BleuCounts(score.counts, score.totals, score.sys_len, score.ref_len) for score in scores]


def corpus_bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """BLEU-4 of a whole corpus, in [0, 1]: n-grams are counted over all posts before precisions are taken.

    sacrebleu's defaults: tokenizer 13a, case kept, exponential smoothing.

    Source:
        Papineni et al. 2002; Post 2018 (sacrebleu).

    Raises:
        ValueError: there are no texts, or not as many predictions as references.
    """
    return corpus_bleu_of(bleu_counts(predictions, references))


def corpus_bleu_of(counts: Sequence[BleuCounts]) -> float:
    """As `corpus_bleu`, from what was counted before."""
    right, total = ([sum(column) for column in zip(*rows, strict=True)] for rows in _columns(counts))
    return _bleu(right, total, sum(c.tokens for c in counts), sum(c.reference_tokens for c in counts), "exp")


def sentence_bleu(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Unsmoothed BLEU-4 of every post by itself, in [0, 1]; its mean is what the paper's code reports as BLEU.

    A text without a single right n-gram of each length from 1 to 4 scores 0, so does one of fewer than four tokens.

    Raises:
        ValueError: there are no texts, or not as many predictions as references.
    """
    return [sentence_bleu_of(counts) for counts in bleu_counts(predictions, references)]


def sentence_bleu_of(counts: BleuCounts) -> float:
    """As `sentence_bleu`, from what was counted before."""
    return _bleu(*counts, "none")


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """ROUGE-L F1 of every post, in [0, 1]: the longest common subsequence of words against both lengths.

    rouge-score's words are lower-cased runs of ASCII letters and digits, not stemmed: text in another script has none
    and scores 0. The subsequence is found bit by bit (Hyyrö 2004), 25 times as fast as rouge-score finds it.

    Source:
        Lin 2004.

    Raises:
        ValueError: there are no texts, or not as many predictions as references.
    """
    # rouge-score brings nltk along: half a second that only an evaluation should cost.
    from rouge_score.tokenizers import DefaultTokenizer

    _check(predictions, references)
    words = DefaultTokenizer(use_stemmer=False).tokenize
    pairs = ((words(said), words(right)) for said, right in zip(predictions, references, strict=True))
    return [2 * _common(said, right) / (len(said) + len(right)) if said and right else 0.0 for said, right in pairs]


def meteor(predictions: Sequence[str], references: Sequence[str], wordnet: WordNet) -> list[float]:
    """METEOR of every post, in [0, 1], by nltk: words match exactly, by their Porter stem, or as synonyms.

    nltk's parameters: alpha 0.9, beta 3, gamma 0.5. Words that are left when stems were compared are their stems, so
    that fewer synonyms are found than METEOR's own program finds ("automobile" has none).

    Args:
        predictions: one a post.
        references: in the same order.
        wordnet: the synonyms.

    Source:
        Banerjee and Lavie 2005; Lavie and Agarwal 2007.

    Raises:
        ValueError: there are no texts, or not as many predictions as references.
    """
    from nltk.translate.meteor_score import single_meteor_score

    _check(predictions, references)
    stemmer: Any = _stemmer()
    synonyms: Any = wordnet
    return [
        float(single_meteor_score(_tokens(right), _tokens(said), stemmer=stemmer, wordnet=synonyms))
        for said, right in zip(predictions, references, strict=True)
    ]


def sim(predictions: Sequence[str], references: Sequence[str], encoder: Encoder) -> list[float]:
    """The cosine of the embeddings of prediction and reference, post by post, in [-1, 1].

    Args:
        predictions: one a post.
        references: in the same order.
        encoder: embeds texts.

    Source:
        Reimers and Gurevych 2019.

    Raises:
        ValueError: there are no texts, or not as many predictions as references.
    """
    _check(predictions, references)
    cosines: list[float] = []
    for start in range(0, len(references), _PAIRS):
        said, right = predictions[start : start + _PAIRS], references[start : start + _PAIRS]
        texts = [text for text in dict.fromkeys([*said, *right]) if text.strip()]
        rows = dict(zip(texts, encoder(texts), strict=True)) if texts else {}
        for one, two in zip(said, right, strict=True):
            cosine = float(rows[one] @ rows[two]) if one in rows and two in rows else 0.0
            cosines.append(max(-1.0, min(1.0, cosine)))  # equal texts come out a rounding error above 1
    return cosines


def distinct(texts: Iterable[str], n: int) -> float:
    """Distinct-n of a corpus, in [0, 1]: different n-grams over all texts, divided by all n-grams; 0 without any.

    Source:
        Li et al. 2016.
    """
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        tokens = _tokens(text)
        grams = list(zip(*(tokens[start:] for start in range(n)), strict=False))
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


def _columns(counts: Sequence[BleuCounts]) -> Iterator[list[list[int]]]:
    yield [c.right for c in counts]
    yield [c.total for c in counts]


def _bleu(right: list[int], total: list[int], tokens: int, reference_tokens: int, smoothing: str) -> float:
    from sacrebleu.metrics import BLEU

    score = BLEU.compute_bleu(right, total, tokens, reference_tokens, smooth_method=smoothing).score
    return min(1.0, float(score) / 100)  # equal texts come out a rounding error above 100


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence; a bit of each whole number stands for a word of the first text."""
    places: dict[str, int] = {}
    for number, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << number
    every = (1 << len(first)) - 1
    unmatched = every
    for word in second:
        meeting = unmatched & places.get(word, 0)
        unmatched = (unmatched + meeting | unmatched - meeting) & every
    return len(first) - unmatched.bit_count()


def _tokens(text: str) -> list[str]:
    return _tokenizer()(text)


class _Tokenizer:
    """sacrebleu's tokenizer 13a, kept from remembering texts: it would keep 65,536 of them, several times over."""

    def __init__(self) -> None:
        from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
        from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp

        self._tokenize = Tokenizer13a()
        self._memories: list[Any] = [Tokenizer13a.__call__, TokenizerRegexp.__call__]
        self._met = 0

    def __call__(self, text: str) -> list[str]:
        self._met += 1
        if self._met % _TEXTS == 0:
            for memory in self._memories:
                memory.cache_clear()
        tokens: list[str] = self._tokenize(text).split()
        return tokens


@cache
def _tokenizer() -> _Tokenizer:
    return _Tokenizer()


class _Stemmer:
    """Porter's stemmer, which takes a word it has met from memory."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = lru_cache(2**16)(PorterStemmer().stem)


@cache
def _stemmer() -> _Stemmer:
    return _Stemmer()


def _check(predictions: Sequence[str], references: Sequence[str]) -> None:
    if not references or len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions for {len(references)} references; one for each of at least one post"
        )
