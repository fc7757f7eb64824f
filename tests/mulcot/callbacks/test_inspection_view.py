import math

import pytest
import torch

from mulcot.callbacks.inspection_view import VIEW_STATISTICS, view_statistics
from mulcot.losses import Dense, Projected, Sampled, TopK

P = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4]])
PREDICTED, TARGETS = torch.tensor([0, 2]), torch.tensor([1, 3])


def entropy(row: list[float]) -> float:
    return -sum(p * math.log(p) for p in row)


def test_dense_logits_tell_the_entropy_and_who_agrees() -> None:
    found = view_statistics(Dense(P.log() + 3), PREDICTED, TARGETS)
    assert found["entropy"].tolist() == pytest.approx([entropy(row) for row in P.tolist()])
    assert found["agreement"].tolist() == [1, 0]
    assert found["assistant_right"].tolist() == [0, 1]
    assert found.keys() == {"entropy", "agreement", "assistant_right"}


def test_a_projected_view_is_made_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mulcot.callbacks.inspection_view._CHUNK", 4)
    head = torch.eye(4)
    found = view_statistics(Projected(P.log(), head), PREDICTED, TARGETS)
    whole = view_statistics(Dense(P.log()), PREDICTED, TARGETS)
    for name, values in whole.items():
        assert torch.allclose(found[name], values), name


def test_a_cut_view_tells_what_it_keeps_and_at_least_how_unsure_the_assistant_is() -> None:
    found = view_statistics(TopK.from_logits(P.log(), 2, 2.0), PREDICTED, TARGETS)
    assert found["kept_mass"].tolist() == pytest.approx([0.75, 0.7])
    flat = P.sqrt() / P.sqrt().sum(dim=-1, keepdim=True)
    assert found["kept_mass_at_T"].tolist() == pytest.approx(flat.topk(2).values.sum(dim=-1).tolist())
    assert found["entropy"].tolist() == pytest.approx([entropy([0.5, 0.25, 0.25]), entropy([0.4, 0.3, 0.3])])
    assert found["agreement"].tolist() == [1, 0]
    assert found["assistant_right"].tolist() == [0, 1]
    assert found.keys() == set(VIEW_STATISTICS)
    at_one = view_statistics(TopK.from_logits(P.log(), 4, 1.0), PREDICTED, TARGETS)
    assert at_one["entropy"].tolist() == pytest.approx([entropy(row) for row in P.tolist()])
    assert "kept_mass_at_T" not in at_one


def test_a_sample_tells_the_entropy_without_bias() -> None:
    view = Sampled.from_logits(P.log().repeat(4000, 1), 8, 1.0, torch.Generator().manual_seed(0))
    found = view_statistics(view, PREDICTED.repeat(4000), TARGETS.repeat(4000))
    means = found["entropy"].view(4000, 2).mean(dim=0).tolist()
    assert means == pytest.approx([entropy(row) for row in P.tolist()], rel=0.01)
    assert found.keys() == {"entropy", "kept_mass_at_T"}
    assert bool((found["kept_mass_at_T"] <= 1 + 1e-6).all())


def test_no_token_tells_nothing() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert view_statistics(Dense(torch.zeros(0, 4)), none, none) == {}
