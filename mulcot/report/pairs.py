"""Two models on the same posts: paired differences with their intervals, and McNemar's test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mulcot.metrics.functional.significance import mcnemar, paired_differences
from mulcot.predictions import Prediction
from mulcot.report.run import BASELINE, Run, TestedModel
from mulcot.report.systems import spread


def differences_from_baseline(run: Run) -> list[dict[str, Any]]:
    """Every trained system against the one that learnt from labels alone, seed by seed.

    Returns:
        For each system that shares a seed with the baseline: `system`, `baseline`, `seeds` (for each shared seed what
        `paired` returns, with `seed`, `stage` and `baseline_stage`) and `mean` (of each measure's differences: mean,
        standard deviation over seeds, number of seeds). Empty where there is no baseline or no predictions.

    Raises:
        InputError: a prediction file is damaged.
    """
    baseline = {model.seed: model for model in run.tested if model.title == BASELINE}
    titles = dict.fromkeys(model.title for model in run.tested if model.title != BASELINE)
    found = []
    for title in titles:
        seeds = []
        for model in run.tested:
            if model.title == title and model.seed in baseline:
                other = baseline[model.seed]
                pair = paired_models(run, other, run, model)
                if pair is not None:
                    seeds.append({"seed": model.seed, "stage": model.stage, "baseline_stage": other.stage, **pair})
        if seeds:
            found.append({"system": title, "baseline": BASELINE, "seeds": seeds, "mean": mean_differences(seeds)})
    return found


def mean_differences(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of the differences that `paired` found, by measure."""
    names = dict.fromkeys(name for seed in seeds for name in seed["differences"])
    return {
        name: spread([s["differences"][name]["difference"] for s in seeds if name in s["differences"]])
        for name in names
    }


def paired_models(first_run: Run, first: TestedModel, second_run: Run, second: TestedModel) -> dict[str, Any] | None:
    """Two tested models on the posts that both answered; None where one of them left no predictions.

    Raises:
        InputError: a prediction file is damaged.
    """
    answers = first_run.predictions(first), second_run.predictions(second)
    if answers[0] is None or answers[1] is None:
        return None
    labels = list(dict.fromkeys([*first.test.confusion, *second.test.confusion]))
    return paired(answers[0], answers[1], labels)


def paired(first: Sequence[Prediction], second: Sequence[Prediction], labels: Sequence[str]) -> dict[str, Any]:
    """Two models' answers, joined by post id.

    A post counts where both answered it and its gold label is known and the same in both.

    Args:
        first: what is compared with, such as the baseline.
        second: what is compared.
        labels: the label set of both.

    Returns:
        `posts` (that count), `only_first` and `only_second` (answered by one alone), `other_gold` (answered by both,
        without a gold label or with two different ones), `differences` (for each measure second minus first, with the
        ends of its interval) and `mcnemar` (posts that one alone has right, and p); without posts that count the last
        two are {} and None.
    """
    answers = {prediction.answer.post_id: prediction for prediction in first}
    both = [(answers[p.answer.post_id], p) for p in second if p.answer.post_id in answers]
    fit = [(a, b) for a, b in both if a.gold is not None and a.gold == b.gold]
    counts = {
        "posts": len(fit),
        "only_first": len(first) - len(both),
        "only_second": len(second) - len(both),
        "other_gold": len(both) - len(fit),
    }
    if not fit:
        return {**counts, "differences": {}, "mcnemar": None}
    said = [[pair[side].answer.label for pair in fit] for side in (0, 1)]
    gold = [str(a.gold) for a, _ in fit]
    number = {label: index for index, label in enumerate(dict.fromkeys([*labels, *gold, *said[0], *said[1]]))}
    first_said, second_said, wanted = ([number[label] for label in side] for side in (*said, gold))
    found = paired_differences(first_said, second_said, wanted, len(number))
    test = mcnemar(first_said, second_said, wanted)
    return {
        **counts,
        "differences": {name: {"difference": d.difference, "low": d.low, "high": d.high} for name, d in found.items()},
        "mcnemar": {
            "only_first_right": test.only_first_right,
            "only_second_right": test.only_second_right,
            "p_value": test.p_value,
        },
    }
