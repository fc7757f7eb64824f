"""Two models on the same posts: paired differences with their intervals, and McNemar's test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mulcot.metrics.functional.significance import mcnemar, mean_differences, paired_differences
from mulcot.predictions import Prediction
from mulcot.report.run import BASELINE, Run, TestedModel
from mulcot.report.systems import spread


def differences_from_baseline(run: Run, baseline: str = BASELINE) -> list[dict[str, Any]]:
    """Every trained system against one of them, seed by seed.

    Args:
        run: the run.
        baseline: the title of the system that the others are compared with.

    Returns:
        For each system that shares a seed with the baseline: `system`, `baseline`, `seeds` (for each shared seed what
        `paired` returns, with `seed`, `stage` and `baseline_stage`) and `mean` (see `over_seeds`). Empty where there is
        no baseline or no predictions.

    Raises:
        InputError: a prediction file is damaged.
    """
    others = {model.seed: model for model in run.tested if model.title == baseline}
    found = []
    for title in dict.fromkeys(model.title for model in run.tested if model.title != baseline):
        seeds, answers = [], []
        for model in run.tested:
            if model.title == title and model.seed in others:
                other = others[model.seed]
                pair = paired_models(run, other, run, model)
                if pair is not None:
                    seeds.append({"seed": model.seed, "stage": model.stage, "baseline_stage": other.stage, **pair})
                    answers.append((run.predictions(other) or [], run.predictions(model) or []))
        if seeds:
            found.append({"system": title, "baseline": baseline, "seeds": seeds, "mean": over_seeds(seeds, answers)})
    return found


def over_seeds(
    seeds: Sequence[dict[str, Any]], answers: Sequence[tuple[Sequence[Prediction], Sequence[Prediction]]]
) -> dict[str, Any]:
    """The mean over seeds of the differences that `paired` found.

    Args:
        seeds: what `paired` returned for each seed.
        answers: what it was given.

    Returns:
        For each measure: `mean`, `sd` (standard deviation over seeds), `n` (seeds), and `low` and `high`, the ends of
        the mean's interval over the posts that count in every seed; None where there are no such posts.
    """
    names = dict.fromkeys(name for seed in seeds for name in seed["differences"])
    means = {
        name: spread([s["differences"][name]["difference"] for s in seeds if name in s["differences"]])
        for name in names
    }
    counted = [{a.answer.post_id: (a, b) for a, b in _fit(first, second)} for first, second in answers]
    common = [post_id for post_id in counted[0] if all(post_id in each for each in counted)]
    if not common or any(len({str(each[post_id][0].gold) for each in counted}) > 1 for post_id in common):
        return {name: {**(mean or {}), "low": None, "high": None} for name, mean in means.items()}
    said = [[pair[post_id][side].answer.label for post_id in common] for side in (0, 1) for pair in counted]
    gold = [str(counted[0][post_id][0].gold) for post_id in common]
    coded, wanted, labels = _coded(said, gold)
    pooled = mean_differences(coded[: len(counted)], coded[len(counted) :], wanted, labels)
    return {name: {**(mean or {}), "low": pooled[name].low, "high": pooled[name].high} for name, mean in means.items()}


def paired_models(first_run: Run, first: TestedModel, second_run: Run, second: TestedModel) -> dict[str, Any] | None:
    """Two tested models on the posts that both answered; None where one of them left no predictions.

    Raises:
        InputError: a prediction file is damaged.
    """
    answers = first_run.predictions(first), second_run.predictions(second)
    if answers[0] is None or answers[1] is None:
        return None
    return paired(answers[0], answers[1])


def paired(first: Sequence[Prediction], second: Sequence[Prediction]) -> dict[str, Any]:
    """Two models' answers, joined by post id.

    A post counts where both answered it and its gold label is known and the same in both.

    Args:
        first: what is compared with, such as the baseline.
        second: what is compared.

    Returns:
        `posts` (that count), `only_first` and `only_second` (answered by one alone), `other_gold` (answered by both,
        without a gold label or with two different ones), `differences` (for each measure second minus first, with the
        ends of its interval) and `mcnemar` (posts that one alone has right, and p); without posts that count the last
        two are {} and None.
    """
    both = len({p.answer.post_id for p in first} & {p.answer.post_id for p in second})
    fit = _fit(first, second)
    counts = {
        "posts": len(fit),
        "only_first": len(first) - both,
        "only_second": len(second) - both,
        "other_gold": both - len(fit),
    }
    if not fit:
        return {**counts, "differences": {}, "mcnemar": None}
    said = [[pair[side].answer.label for pair in fit] for side in (0, 1)]
    (first_said, second_said), wanted, labels = _coded(said, [str(a.gold) for a, _ in fit])
    found = paired_differences(first_said, second_said, wanted, labels)
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


def _fit(first: Sequence[Prediction], second: Sequence[Prediction]) -> list[tuple[Prediction, Prediction]]:
    """The posts that count, as both answered them."""
    answers = {prediction.answer.post_id: prediction for prediction in first}
    both = [(answers[p.answer.post_id], p) for p in second if p.answer.post_id in answers]
    return [(a, b) for a, b in both if a.gold is not None and a.gold == b.gold]


def _coded(said: Sequence[Sequence[str]], gold: Sequence[str]) -> tuple[list[list[int]], list[int], int]:
    """Labels as numbers, and how many there are; a label that does not occur changes no score."""
    names = dict.fromkeys([*gold, *(label for one in said for label in one)])
    number = {label: index for index, label in enumerate(names)}
    return [[number[label] for label in one] for one in said], [number[label] for label in gold], len(number)
