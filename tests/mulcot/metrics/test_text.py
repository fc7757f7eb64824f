"""Text scores by hand, by their definitions written out here, and against the libraries by another way to them."""

import json
import logging
import math
import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from nltk.translate import bleu_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from mulcot.metrics.functional import corpus_bleu, distinct, rouge_l, sentence_bleu, sim

VAL = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "twitter15" / "val.json"


def longest_common_subsequence(first: list[str], second: list[str]) -> int:
    """By its recursion."""

    @cache
    def length(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return 0
        if first[i - 1] == second[j - 1]:
            return length(i - 1, j - 1) + 1
        return max(length(i - 1, j), length(i, j - 1))

    # Filled row by row, so that long texts do not exhaust the stack.
    return max(length(i, j) for i in range(len(first) + 1) for j in range(len(second) + 1))


def rouge_l_by_definition(prediction: str, reference: str) -> float:
    said, right = (re.findall("[a-z0-9]+", text.lower()) for text in (prediction, reference))
    common = longest_common_subsequence(said, right)
    if common == 0:
        return 0.0
    precision, recall = common / len(said), common / len(right)
    return 2 * precision * recall / (precision + recall)


def bleu_by_definition(predictions: list[list[str]], references: list[list[str]]) -> float:
    """Unsmoothed BLEU-4 of tokenized texts."""

    def ngrams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
        return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))

    logs = []
    for n in range(1, 5):
        pairs = [(ngrams(p, n), ngrams(r, n)) for p, r in zip(predictions, references, strict=True)]
        logs.append(math.log(sum((p & r).total() for p, r in pairs) / sum(p.total() for p, _ in pairs)))
    said, right = (sum(map(len, texts)) for texts in (predictions, references))
    return min(1.0, math.exp(1 - right / said)) * math.exp(sum(logs) / 4)


@pytest.fixture(scope="module")
def shifted() -> tuple[list[str], list[str]]:
    """Real rationales, each with the next one as its reference."""
    if not VAL.exists():
        pytest.skip("the Twitter-2015 sample is not beside this checkout")
    texts = [row["cot"] for row in json.loads(VAL.read_text(encoding="utf-8"))[:25]]
    return texts, texts[1:] + texts[:1]


def test_bleu_by_hand():
    # 6 of 7 words, 4 of 6 pairs, 3 of 5 triples, 2 of 4 quadruples; as long as the reference.
    said, right = "a b c d e f x", "a b c d e g x"
    assert corpus_bleu([said], [right]) == pytest.approx((6 / 7 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25)
    # The first five words of it: every n-gram is right, and the brevity penalty is exp(1 - 7 / 5).
    assert corpus_bleu(["a b c d e"], [right]) == pytest.approx(math.exp(-0.4))


def test_bleu_of_a_corpus_counts_over_all_posts_and_is_no_mean():
    said, right = ["a b c d e", "x y z u v w"], ["a b c d e", "x y z q v w"]
    expected = bleu_by_definition([text.split() for text in said], [text.split() for text in right])
    assert corpus_bleu(said, right) == pytest.approx(expected)
    assert sum(sentence_bleu(said, right)) / 2 != pytest.approx(expected, abs=0.01)


def test_bleu_is_sacrebleus(shifted):
    said, right = shifted
    assert corpus_bleu(said, right) == pytest.approx(sacrebleu.corpus_bleu(said, [right]).score / 100)


@pytest.mark.filterwarnings(r"ignore:\sThe hypothesis contains 0 counts:UserWarning")
def test_bleu_of_real_rationales_is_nltks_on_the_same_tokens(shifted):
    shifted = tuple(texts + [text[17:160] for text in texts] for texts in shifted)
    said, right = ([Tokenizer13a()(text).split() for text in texts] for texts in shifted)
    assert corpus_bleu(*shifted) == pytest.approx(bleu_score.corpus_bleu([[r] for r in right], said), abs=1e-6)
    each = [bleu_score.sentence_bleu([r], p) for p, r in zip(said, right, strict=True)]
    assert sentence_bleu(*shifted) == pytest.approx(each, abs=1e-6)
    assert min(each) < 1e-6 < max(each)  # some of the short ones have no common quadruple


def test_sentence_bleu_is_not_smoothed():
    # All words and two of three pairs are right, but no triple is: a smoothed score would be far from 0.
    assert sentence_bleu(["a b c d"], ["a b x c d"]) == [0.0]
    assert sentence_bleu(["a b c"], ["a b c"]) == [0.0]
    assert sentence_bleu(["a b c d e"], ["a b c d f"]) == [pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)]


def test_bleu_of_real_rationales_by_definition(shifted):
    # Letters alone: the tokenizer 13a, which is not what is tested here, leaves such words as they are.
    tokens = [[re.findall("[a-z]+", text.lower()) for text in texts] for texts in shifted]
    said, right = ([" ".join(words) for words in texts] for texts in tokens)
    assert corpus_bleu(said, right) == pytest.approx(bleu_by_definition(*tokens), rel=1e-6)


def test_rouge_l_by_hand():
    # "the cat on mat" is common: 4 of 6 words said, 4 of 5 words of the reference.
    assert rouge_l(["The cat sat on a mat."], ["the cat, on the mat"]) == [pytest.approx(2 * 4 / (6 + 5))]


def test_rouge_l_of_real_rationales_is_rouge_scores(shifted):
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    each = [scorer.score(right, said)["rougeL"].fmeasure for said, right in zip(*shifted, strict=True)]
    assert rouge_l(*shifted) == pytest.approx(each, abs=1e-9)


def test_rouge_l_of_real_rationales_by_definition(shifted):
    said, right = ([text[:400] for text in texts] for texts in shifted)
    assert rouge_l(said, right) == pytest.approx(
        [rouge_l_by_definition(p, r) for p, r in zip(said, right, strict=True)]
    )


@pytest.mark.parametrize("text", ["one two, three", "The picture is bright; the text agrees with it, it seems."])
def test_a_text_against_itself_is_one(text):
    assert sentence_bleu([text], [text]) == [pytest.approx(1.0)]
    assert rouge_l([text], [text]) == [1.0]
    assert max(sentence_bleu([text], [text])) <= 1.0


def test_corpus_bleu_never_exceeds_one(shifted):
    assert corpus_bleu(shifted[0], shifted[0]) == pytest.approx(1.0)
    assert corpus_bleu(shifted[0], shifted[0]) <= 1.0


@pytest.mark.parametrize(("said", "right"), [("", "a b c d"), ("a b c d", ""), ("", ""), (" ", "\n"), ("!", "a b c d")])
def test_an_empty_text_matches_nothing(said, right, caplog):
    assert (corpus_bleu([said], [right]), sentence_bleu([said], [right])) == (0.0, [0.0])
    assert rouge_l([said], [right]) == [0.0]
    assert not caplog.records


def test_an_empty_text_stays_in_the_corpus():
    said, right = "a b c d e", "a b c d e"
    # A missing reply leaves precisions at 1, with half of the words: exp(1 - 10 / 5).
    assert corpus_bleu([said, ""], [right, right]) == pytest.approx(math.exp(-1))
    # A missing reference halves every precision: half of all n-grams said match.
    assert corpus_bleu([said, said], [right, ""]) == pytest.approx(0.5)


def test_texts_that_look_tokenized_are_no_cause_for_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        corpus_bleu(["it is fine ."] * 120, ["it is fine ."] * 120)
    assert not caplog.records


@pytest.mark.parametrize("measure", [corpus_bleu, sentence_bleu, rouge_l])
@pytest.mark.parametrize(("said", "right"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_texts_without_a_partner_are_refused(measure, said, right):
    with pytest.raises(ValueError, match=rf"{len(said)} predictions for {len(right)} references"):
        measure(said, right)


def test_distinct_by_hand():
    # "a b a b", "a b c": 7 words, 3 different; 5 pairs (ab ba ab, ab bc), 3 different.
    assert distinct(["a b a b", "a b c"], 1) == pytest.approx(3 / 7)
    assert distinct(["a b a b", "a b c"], 2) == pytest.approx(3 / 5)
    assert distinct(["good.", "good!"], 1) == pytest.approx(3 / 4)  # punctuation is a token of its own
    assert (distinct([], 1), distinct(["", " "], 1), distinct(["one"], 2)) == (0.0, 0.0, 0.0)


def test_distinct_is_of_the_corpus_and_no_mean_over_texts():
    assert distinct(["a b"] * 10, 1) == pytest.approx(2 / 20)


def turned(texts: list[str]) -> np.ndarray:
    """A unit vector for each text, turned by as many degrees as its length."""
    angles = [math.radians(len(text)) for text in texts]
    return np.array([[math.cos(angle), math.sin(angle)] for angle in angles], dtype=np.float32)


def test_sim_is_the_cosine_of_the_embeddings():
    said, right = ["x" * 10, "x" * 5, "x" * 190, "same"], ["x" * 70, "x" * 95, "x" * 10, "same"]
    assert sim(said, right, turned) == pytest.approx([0.5, 0.0, -1.0, 1.0], abs=1e-6)


def test_sim_embeds_a_text_once_in_batches_and_an_empty_one_never():
    asked: list[list[str]] = []

    def encoder(texts: list[str]) -> np.ndarray:
        asked.append(list(texts))
        return turned(texts)

    said, right = [f"{n:04}" for n in range(1500)], ["aa"] * 1500
    said[3], right[4] = "", " \n"
    found = sim(said, right, encoder)
    assert (found[3], found[4]) == (0.0, 0.0)
    assert found[5] == pytest.approx(math.cos(math.radians(2)), abs=1e-6)
    assert [len(texts) for texts in asked] == [1024, 477]  # 1,023 and 476 texts and "aa"
    assert "" not in asked[0]
    assert sim(["", " "], ["a", ""], encoder) == [0.0, 0.0]
