"""What a fit stands on: a resumed one needs the same data, model, steps and numbers, or it would be neither run."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mulcot.types import InputError

FORMAT: Final = 1
"""Of what mulcot keeps in a checkpoint beside Lightning's own; a greater one was written by a later version."""
Ground = dict[str, dict[str, Any]]
"""Settings and digests by group, each by its name in the configuration."""

_GROUPS: Final = (
    ("seed", ("seed_everything", "data.init_args.seed")),
    (
        "batch",
        (
            "data.init_args.posts_per_step",
            "data.init_args.length_pool",
            "data.init_args.layout",
            "data.init_args.row_tokens",
            "trainer.accumulate_grad_batches",
        ),
    ),
    ("data", ("data.",)),
    ("adapter", ("model.init_args.lora", "model.init_args.quantise")),
    ("optimizer", ("model.init_args.optimizer.", "trainer.gradient_clip_")),
    (
        "losses",
        (
            "losses.",
            "model.init_args.lambda_soft",
            "model.init_args.task_weights",
            "model.init_args.published",
            "model.init_args.online_assistant",
            "model.init_args.assistant_",
        ),
    ),
    ("model", ("model.",)),
    ("precision", ("trainer.precision", "trainer.accelerator")),
    (
        "schedule",
        (
            "trainer.max_",
            "trainer.min_",
            "trainer.limit_",
            "trainer.val_check_interval",
            "trainer.check_val_every_n_epoch",
            "trainer.overfit_batches",
        ),
    ),
)
"""Which settings count, by the beginning of their names; the first group that fits takes one. Others do not count."""
_MANNER: Final = (
    "data.init_args.num_workers",
    "data.init_args.picture_cache_mb",
    "data.init_args.eval_",
    "data.init_args.max_tokens",
    "data.init_args.on_bad_row",
    "data.init_args.other_prompts",
    "data.init_args.references",
    "model.init_args.stage_dir",
    "model.init_args.title",
    "model.init_args.max_new_tokens",
    "model.init_args.trust_remote_code",
    "model.init_args.activation_checkpointing",
    "model.init_args.compile_layers",
    "model.init_args.predicts",
    "model.init_args.sampl",
    "model.init_args.temperature",
    "model.init_args.engine",
    "model.init_args.soft_label_",
)
"""Settings that do not change what is trained, or what a fit does not use."""
NAMES: Final = (*(name for name, _ in _GROUPS), "world")
"""What `--allow_changed` may name."""
_ABSENT: Final = "none"
_BASE: Final = "base"
_PRETRAINED: Final = "model.init_args.pretrained"
_DROPOUT: Final = "model.init_args.lora.dropout"
"""Acts in training alone."""
_QUANTISE: Final = "model.init_args.quantise"
"""An adapter belongs to the whole weights, which is what `infer` and `export` put it on, and may be measured on them
although it was trained on quantised ones."""


def ground_of(
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    models: Sequence[str],
    encoder: Mapping[str, str],
    world: int,
) -> Ground:
    """The ground of a fit.

    Args:
        config: the resolved configuration.
        inputs: the digest of every file and folder that the stage reads, by path. They stand for the paths, so that
            data and models may lie elsewhere when the fit goes on.
        models: those of the inputs that are models, the one that is trained first.
        encoder: digests of prompts, chat template, vocabulary and picture sizes.
        world: how many processes train.
    """
    ground: Ground = {name: {} for name in NAMES}
    for name, value in _flat(config):
        group = None if name.startswith(_MANNER) else _group(name)
        if group is not None and not _is_path(value):
            ground[group][name] = value
    for path, digest in inputs.items():
        group = "model" if path in models else "data"
        ground[group][_end(path)] = digest[:12]
    # Beside the groups, for who evaluates: of the models above it alone lies below what is trained.
    trained = {path: digest for path, digest in inputs.items() if path == models[0]}
    ground[_BASE] = base_ground(ground["model"].get(_PRETRAINED), trained)
    ground["model"] |= dict(encoder)
    ground["world"]["processes"] = world
    return ground


def base_ground(pretrained: str | None, digests: Mapping[str, str]) -> dict[str, Any]:
    """The model that is trained, or that carries what is: its digest, or its name on the hub.

    Args:
        pretrained: as it is named in the configuration.
        digests: its digest by path; empty where it is not on this disk.
    """
    return {_end(path): digest[:12] for path, digest in digests.items()} or {_PRETRAINED: pretrained}


def check_ground(found: Ground | None, wanted: Ground, allowed: Collection[str], where: str) -> list[str]:
    """Refuses to go on where the ground has changed.

    Args:
        found: what the checkpoint was made on; None where it does not say.
        wanted: what the fit stands on now.
        allowed: groups that may have changed.
        where: which fit it is, for the message.

    Returns:
        The groups that have changed and may have.

    Raises:
        InputError: another group has changed; the message has old and new side by side.
    """
    if found is None:
        raise InputError(f"{where} was begun by another version of mulcot, which cannot be gone on from: give --fresh")
    changed = {name: told for name in NAMES if (told := _differences(found.get(name, {}), wanted[name]))}
    if sides := _refused(changed, allowed):
        raise InputError(
            f"{where} was begun on other ground: {sides}. Give back what was, go on with the change "
            f"(--allow_changed {','.join(changed)}), or start anew (--fresh; of a chain's step "
            "`mulcot run --only STEP --force`)"
        )
    return list(changed)


def check_base(
    found: object, config: Mapping[str, Any], base: Mapping[str, Any], allowed: Collection[str], where: str
) -> list[str]:
    """Refuses to evaluate an adapter, or a part of the weights, on another model than it was trained on.

    Args:
        found: the ground that the checkpoint says it was made on.
        config: the resolved configuration of the evaluation.
        base: see `base_ground`; the model that the weights go onto now.
        allowed: groups that may have changed.
        where: which checkpoint it is, for the message.

    Returns:
        What else the adapter was trained with, old and new; it does not change what the adapter is.

    Raises:
        InputError: model or adapter has changed, or the checkpoint does not say what they were.
    """
    if not (isinstance(found, dict) and all(isinstance(found.get(name), dict) for name in ("adapter", "model"))):
        if {"adapter", "model"}.issubset(allowed):
            return []
        raise InputError(
            f"{where} does not say on which model and with which adapter its weights were trained: give a checkpoint "
            "that this version of `mulcot fit` wrote, or evaluate it all the same (--allow_changed model,adapter)"
        )
    # A checkpoint of before the base stood for itself has it among the models, by the same end of its path.
    old = found.get(_BASE) or {name: found["model"][name] for name in base if name in found["model"]}
    was = {name: value for name, value in found["adapter"].items() if name != _DROPOUT}
    now = {name: value for name, value in _flat(config) if _group(name) == "adapter" and name != _DROPOUT}
    adapter = _differences(was, now)
    quantised = [told for told in adapter if told.startswith(_QUANTISE)]
    changed = {
        # The same model may lie elsewhere.
        "model": [] if list(old.values()) == list(base.values()) else _differences(old, base),
        "adapter": [told for told in adapter if told not in quantised],
    }
    if sides := _refused(changed, allowed):
        names = ",".join(name for name, told in changed.items() if told)
        raise InputError(
            f"{where} holds a part of its model alone, and was trained on another: {sides}. Give back what was, or "
            f"evaluate it all the same (--allow_changed {names})"
        )
    return quantised


def check_allowed(given: str | None) -> list[str]:
    """The groups that `--allow_changed` names.

    Raises:
        InputError: one of them is none.
    """
    names = [name.strip() for name in (given or "").split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            raise InputError(f"--allow_changed {given}: there is no {name!r}; it may name {', '.join(NAMES)}")
    return names


def _refused(changed: Mapping[str, Sequence[str]], allowed: Collection[str]) -> str:
    """The groups that have changed and may not, with old and new; empty where there is none."""
    refused = [name for name, told in changed.items() if told and name not in allowed]
    return "; ".join(f"{name}: {', '.join(changed[name])}" for name in refused)


def _end(path: str) -> str:
    """By what a model or a file is named, so that the run may lie elsewhere."""
    return "/".join(Path(path).parts[-2:])


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    names = [*new, *(name for name in old if name not in new)]
    return [
        f"{name} was {_shown(old.get(name))}, is {_shown(new.get(name))}"
        for name in names
        if old.get(name) != new.get(name)
    ]


def _shown(value: Any) -> str:
    return _ABSENT if value is None else value if isinstance(value, str) else json.dumps(value)


def _group(name: str) -> str | None:
    return next((group for group, beginnings in _GROUPS if name.startswith(beginnings)), None)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its whole name, as what JSON has; null ones are left out, which makes them equal to none."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    elif value is not None:
        yield name, json.loads(json.dumps(value, default=str))


def _is_path(value: Any) -> bool:
    """Whether a setting names something on this disk: what it holds counts, by its digest."""
    if isinstance(value, list):
        return bool(value) and all(map(_is_path, value))
    return isinstance(value, str) and "/" in value and Path(value).exists()
