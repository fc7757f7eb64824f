"""The pass of rows through a model's body: each distinct picture once, each common beginning once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask

from mulcot.models.attention import BLOCK_ATTENTION
from mulcot.models.parts import base_model
from mulcot.models.sharding import within
from mulcot.rows import Inputs, Layout, RowForm
from mulcot.types import InputError

# These are what `mulcot.rows.Inputs` adds to what a model of transformers takes.
_PICTURES: Final = "pictures"
_TREE: Final = ("depths", "until", "trees", "heads")

SHARED_MODELS: Final = ("idefics3", "llava", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm")
"""Models, by transformers' `model_type`, that compute the same from rows with a shared beginning as from rows apart; a
test holds each of them to it."""
_SHARED_ATTENTION: Final = (BLOCK_ATTENTION, "eager", "flex_attention", "sdpa")
"""Attention that takes a mask for every pair of tokens."""

Layers = tuple[Tensor, ...]


class Passes:
    """The passes of models over a micro-batch, each once: rows of several tasks may share their inputs."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], Layers] = {}

    def of(self, model: nn.Module, inputs: Inputs, run: Callable[[nn.Module, Inputs], Layers]) -> Layers:
        """What `run` gives for the inputs; of the same ones, what it gave before."""
        key = (id(model), id(inputs))
        if key not in self._kept:
            self._kept[key] = run(model, inputs)
        return self._kept[key]


def hidden_states(model: nn.Module, inputs: Inputs) -> Tensor:
    """The last hidden states `[B, L, hidden]`, before the head, so that the head sees only what it must.

    Args:
        model: the model.
        inputs: see `mulcot.rows.Inputs`.
    """
    return within(model, lambda: cast(Tensor, run_body(model, inputs, use_cache=False).last_hidden_state))


def hidden_layers(model: nn.Module, inputs: Inputs) -> tuple[Tensor, ...]:
    """The hidden states `[B, L, hidden]` behind the embedding and behind every layer; the head sees the last one.

    Args:
        model: the model.
        inputs: see `mulcot.rows.Inputs`.
    """
    return within(
        model, lambda: tuple(run_body(model, inputs, use_cache=False, output_hidden_states=True).hidden_states)
    )


def run_body(model: nn.Module, inputs: Inputs, **options: Any) -> Any:
    """What the body of a model gives for rows; weights that are spread over processes must be `gathered`.

    Args:
        model: the model.
        inputs: see `mulcot.rows.Inputs`.
        options: further arguments of the body, a cache of keys and values for example.
    """
    body: Any = base_model(model).model
    given = {key: value for key, value in inputs.items() if key != _PICTURES and key not in _TREE}
    if _PICTURES in inputs:
        options["mm_encoder_outputs"] = {"image": picture_features(model, inputs)}
        of_pictures = _arguments(type(body).get_image_features)
        given = {key: value for key, value in given.items() if key not in of_pictures}
        if "image_grid_thw" in inputs:  # from which positions are made, so of every picture where it stands
            given["image_grid_thw"] = inputs["image_grid_thw"][inputs[_PICTURES]]
    if "until" in inputs:
        if refusal := shared_refusal(model):
            raise InputError(
                f"rows with a shared beginning cannot be read: {refusal}; set data.init_args.layout=paired"
            )
        options["position_ids"] = tree_positions(body, inputs)
        options["attention_mask"] = tree_mask(inputs["until"], _attention(body), _dtype(body))
    return body(**given, **options)


def picture_features(model: nn.Module, inputs: Inputs) -> Any:
    """What the vision tower makes of every distinct picture, once for each place at which one stands.

    A tower that is not trained is run without a graph.

    Args:
        model: the model.
        inputs: with `pictures`.

    Returns:
        What the model's `get_image_features` returns, picture by picture in the order of `pictures`.
    """
    body: Any = base_model(model).model
    wanted = _arguments(type(body).get_image_features)
    given = {key: value for key, value in inputs.items() if key in wanted}
    trained = torch.is_grad_enabled() and _trains_vision(body)
    with torch.set_grad_enabled(trained):
        found = body.get_image_features(**given, return_dict=True)
    places = inputs[_PICTURES].tolist()
    found.pooler_output = [found.pooler_output[place] for place in places]
    if getattr(found, "deepstack_features", None) is not None:  # Qwen3-VL adds pictures to several layers
        found.deepstack_features = [[layer[place] for place in places] for layer in found.deepstack_features]
    return found


def tree_mask(until: Tensor, attention: str, dtype: torch.dtype) -> Any:
    """Who sees whom in the shared layout.

    Args:
        until: `[B, L]`, see `mulcot.rows.Inputs`.
        attention: the attention implementation of the language model.
        dtype: of the mask where it is added to the attention's scores.

    Returns:
        `[B, 1, L, L]`, bool or to be added; a block mask for `flex_attention`, which skips what no one sees.
    """
    lines, width = until.shape
    if attention in (BLOCK_ATTENTION, "flex_attention"):

        def may_see(line: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < until[line, key])

        return create_block_mask(may_see, lines, None, width, width, device=until.device)
    place = torch.arange(width, device=until.device)
    seen = (place[None, :] <= place[:, None]) & (place[None, :, None] < until[:, None, :])
    seen = seen.unsqueeze(1)
    if attention == "sdpa":
        return seen
    return torch.zeros((), dtype=dtype, device=until.device).masked_fill(~seen, torch.finfo(dtype).min)


def tree_positions(body: nn.Module, inputs: Inputs) -> Tensor:
    """The position of every token on its own path: `[B, L]`, or `[3, B, L]` for Qwen's multimodal rotary positions.

    Args:
        body: the model's body.
        inputs: see `mulcot.rows.Inputs`.
    """
    depths = inputs["depths"]
    of_picture = cast(Callable[..., Any] | None, getattr(body, "get_rope_index", None))
    if of_picture is None:
        return depths
    lines, starts, lengths = inputs["heads"].unbind(dim=1)
    offset = torch.arange(int(lengths.max()), device=depths.device)
    is_head = offset < lengths[:, None]
    places = (starts[:, None] + offset).clamp(max=depths.shape[1] - 1)
    wanted = _arguments(of_picture)
    given = {
        key: value[lines[:, None], places]
        for key, value in inputs.items()
        if key in wanted and value.shape == depths.shape
    }
    pictures = inputs.get(_PICTURES)
    if "image_grid_thw" in inputs:
        grid = inputs["image_grid_thw"]
        given["image_grid_thw"] = grid if pictures is None else grid[pictures]
    positions, _ = of_picture(**given, attention_mask=is_head.to(depths.dtype))
    # Behind the picture all three dimensions go on together from the largest position so far.
    following = positions.masked_fill(~is_head, -1).amax(dim=(0, 2)) + 1
    shift = (following - lengths)[inputs["trees"].clamp(min=0)]
    every = (depths + shift).expand(3, -1, -1).clone()
    rows, columns = is_head.nonzero(as_tuple=True)
    every[:, lines[rows], places[rows, columns]] = positions[:, rows, columns]
    return every


def row_form(model: nn.Module, layout: Layout = "shared", row_tokens: int | None = None) -> RowForm:
    """The form in which a model takes rows: the wanted one, or the paired layout where it cannot take the shared one.

    Args:
        model: the model.
        layout: the layout that is wanted.
        row_tokens: see `RowForm`.
    """
    if layout == "shared" and shared_refusal(model):
        layout = "paired"
    return RowForm(layout, row_tokens, takes_features(model))


def shared_refusal(model: nn.Module) -> str:
    """Why a model cannot take rows in the shared layout, for a message; empty when it can."""
    base = base_model(model)
    config, kind = base.config.get_text_config(), str(base.config.model_type)
    attention = _attention(cast(nn.Module, base.model))
    if kind not in SHARED_MODELS:
        return f"a {kind} is not known to compute the same in it"
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layers != {"full_attention"}:
        return f"the model has layers of {', '.join(sorted(layers - {'full_attention'}))}, whose window counts tokens"
    if attention not in _SHARED_ATTENTION:
        return f"attention {attention} takes no mask for every pair of tokens"
    return ""


def takes_features(model: nn.Module) -> bool:
    """Whether a model takes pictures that went through its vision tower before."""
    body = type(cast(nn.Module, base_model(model).model))
    return hasattr(body, "get_image_features") and "mm_encoder_outputs" in _arguments(body.forward)


def _trains_vision(body: Any) -> bool:
    language = body.get_decoder() if hasattr(body, "get_decoder") else body.language_model
    inside = {id(parameter) for parameter in language.parameters()}
    return any(parameter.requires_grad and id(parameter) not in inside for parameter in body.parameters())


@cache
def _arguments(function: Callable[..., Any]) -> frozenset[str]:
    """The names that a function takes; a decorated one's own."""
    return frozenset(inspect.signature(function).parameters)


def _attention(body: nn.Module) -> str:
    return str(cast(Any, body).config.get_text_config()._attn_implementation)


def _dtype(body: nn.Module) -> torch.dtype:
    kind = next(iter(body.parameters())).device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else cast(Any, body).dtype
