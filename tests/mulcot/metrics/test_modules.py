"""The modules through `evaluate.load`, by path and without a network, against the libraries and values by hand."""

import json
import socket
from importlib.resources import files
from statistics import fmean

import evaluate
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from mulcot.metrics.functional import meteor, sim
from mulcot.metrics.resources import UnavailableError, load_encoder, load_wordnet

FOLDER = files("mulcot.metrics.modules")
NAMES = ("bleu", "distinct", "meteor", "rouge_l", "sim")


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    def refuse(*_: object) -> None:
        raise AssertionError("a metric asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_CACHE", tmp_path)


def load(name: str) -> evaluate.Metric:
    return evaluate.load(str(FOLDER / name))


@pytest.fixture(scope="module")
def pairs(shared_data) -> tuple[list[str], list[str]]:
    rows = json.loads((shared_data / "twitter15" / "val.json").read_text(encoding="utf-8"))[:12]
    texts = [row["cot"] for row in rows]
    return [*texts[1:], ""], texts


def test_every_module_of_the_folder_is_one_of_these():
    assert sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__") == list(NAMES)


def test_bleu(pairs):
    said, right = pairs
    found = load("bleu").compute(predictions=said, references=right)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [right]).score / 100, abs=1e-6)
    plain = {"smooth_method": "none", "use_effective_order": False}
    each = [sacrebleu.sentence_bleu(p, [r], **plain).score / 100 for p, r in zip(said, right, strict=True)]
    assert found["sentence_bleu"] == pytest.approx(fmean(each), abs=1e-6)


def test_rouge_l(pairs):
    scorer = RougeScorer(["rougeL"])
    each = [scorer.score(right, said)["rougeL"].fmeasure for said, right in zip(*pairs, strict=True)]
    said, right = pairs
    assert load("rouge_l").compute(predictions=said, references=right) == {"rouge_l": pytest.approx(fmean(each))}


def test_distinct_takes_predictions_alone():
    assert load("distinct").compute(predictions=["a b a b", "a b c", ""]) == {
        "distinct_1": pytest.approx(3 / 7),
        "distinct_2": pytest.approx(3 / 5),
    }


def test_batches_add_up(pairs):
    said, right = pairs
    metric = load("bleu")
    for start in range(0, len(said), 5):
        metric.add_batch(predictions=said[start : start + 5], references=right[start : start + 5])
    assert metric.compute() == load("bleu").compute(predictions=said, references=right)


def test_meteor_and_sim(pairs):
    try:
        wordnet, encoder = load_wordnet(), load_encoder()
    except UnavailableError as missing:
        pytest.skip(str(missing))
    said, right = pairs
    found = load("meteor").compute(predictions=said, references=right)
    assert found == {"meteor": pytest.approx(fmean(meteor(said, right, wordnet)))}
    found = load("sim").compute(predictions=said, references=right)
    assert found == {"sim": pytest.approx(fmean(sim(said, right, encoder)), abs=1e-6)}


def test_what_is_missing_is_an_error_and_no_number(monkeypatch, tmp_path):
    monkeypatch.setattr("mulcot.metrics.resources.find_spec", lambda name: None)
    for name, what in (("meteor", "WordNet is not installed"), ("sim", "sentence-transformers is not installed")):
        with pytest.raises(UnavailableError, match=what):
            load(name).compute(predictions=["a"], references=["a"])
