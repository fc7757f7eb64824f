"""The probes on a terminal of 80 columns: every figure whole, and what was not measured with its reason."""

from io import StringIO

from rich.console import Console

from mulcot.callbacks.probe_display import show_probes
from mulcot.metrics.probe_files import (
    Agreement,
    AspectSwaps,
    Changes,
    Conflict,
    Grounding,
    Marked,
    Probes,
    RationaleChanges,
    Unavailable,
)

DISTANCE = {"Text_analysis": 0.1, "whole": 0.3128}
CHANGED = Changes(
    posts=200,
    golds=200,
    accuracy=0.6651,
    accuracy_before=0.855,
    labels_changed=0.325,
    total_variation=0.2451,
    probability_change=-0.2,
    rationales=RationaleChanges(
        parse_rate=0.51, parse_rate_before=1.0, pairs=102, distance=DISTANCE, predictions_changed=0.25
    ),
)
EMPTY = Changes(
    posts=0,
    golds=0,
    accuracy=None,
    accuracy_before=None,
    labels_changed=None,
    total_variation=None,
    probability_change=None,
)
FOUND = Probes(
    seed=7,
    posts=200,
    faithfulness={"aspect_removed": CHANGED, "image_swapped": EMPTY},
    other_aspects=AspectSwaps(posts=30, follows=0.5, differing=26, differing_follows=0.423, differing_stays=0.385),
    conflict=Conflict(yes=Marked(posts=123, golds=123, accuracy=0.829), no=Marked(posts=77, golds=0, accuracy=None)),
    grounding=Unavailable(unavailable="no [weights] are named"),
)


def shown(probes: Probes) -> str:
    stream = StringIO()
    show_probes(probes, Console(file=stream, width=80))
    return stream.getvalue()


def test_every_figure_is_there_and_whole() -> None:
    lines = shown(FOUND).splitlines()
    assert lines[0].strip() == "Probes of 200 test posts (seed 7)"
    (row,) = [line.split() for line in lines if line.strip().startswith("aspect removed")]
    assert row == ["aspect", "removed", "200", "0.855", "→", "0.665", "0.325", "0.245", "0.510", "0.313"]
    assert "…" not in shown(FOUND)
    said = " ".join(shown(FOUND).split())
    assert "123 posts (accuracy 0.829), none: 77 (accuracy –)" in said
    assert "26 posts, the answer is that label in 0.423, the first one's in 0.385" in said
    assert "grounding: not measured: no [weights] are named" in said


def test_grounding_with_its_interval() -> None:
    student = Agreement(posts=9, own=0.3, shuffled=0.2, wins=0.75, interval=(0.6, 0.9))
    nothing = Agreement(posts=0, own=None, shuffled=None, wins=None, interval=None)
    grounding = Grounding(clip_model="m", clip_pretrained="w", shuffles=5, student=student, reference=nothing)
    said = " ".join(shown(FOUND.model_copy(update={"grounding": grounding})).split())
    assert "grounding, model: own picture wins 0.750 (0.600 to 0.900; chance 0.5), cosine 0.300 against 0.200" in said
    assert "grounding, references: no rationales to compare" in said
