"""What a model's processor may ask for, and whether it belongs to the model: settings that are wrong fail late or not.

Sizes of pictures are orders to make pictures of that size, whatever the memory; numbers that are none make every answer
NaN; and a processor whose patches or tokens are not the model's ends within the model, far from what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

from torch import Tensor
from transformers import PreTrainedModel

from mulcot.images import MAX_PIXELS
from mulcot.models.vocabulary import check_head_rows
from mulcot.types import InputError

_MAX_SIDE: Final = 16_384
_UNBOUNDED: Final = 2**62
"""For the most pixels that a picture keeps: none has more than it has."""
_MAX_PATCH: Final = 1_024
_CHANNELS: Final = 4
_MAX_SCALE: Final = 1e6
_PATCHES: Final = ("patch_size", "merge_size", "temporal_patch_size")
_SIZES: Final = ("size", "crop_size", "pad_size", "max_image_size", "min_pixels")
_SCALES: Final = ("image_mean", "image_std", "rescale_factor")
_OF_MODEL: Final = {"patch_size": "patch_size", "merge_size": "spatial_merge_size"}
_TOKENS: Final = ("image_token_id", "image_token_index")


def check_pictures(processor: Any, given: str) -> None:
    """Refuses settings of an image processor with which no picture can be made, or one that takes all memory.

    Args:
        processor: the model's.
        given: the model, for the message.

    Raises:
        InputError: names the setting and its value.
    """
    settings = {} if processor.image_processor is None else processor.image_processor.to_dict()
    by_area = settings.get("merge_size") is not None
    for name, value in _leaves({name: settings.get(name) for name in (*_PATCHES, *_SIZES)}):
        limit = _limit(name, by_area)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            raise InputError(
                f"{given}: {name} is {repr(value)[:80]} in its image processor, and whole numbers from 1 to {limit} "
                "are taken: copy the settings of the model that it came from"
            )
    for name in _SCALES:
        numbers = settings.get(name)
        numbers = [] if numbers is None else numbers if isinstance(numbers, list | tuple) else [numbers]
        if len(numbers) > _CHANNELS:
            raise InputError(f"{given}: {name} has {len(numbers)} numbers in its image processor: one a channel is due")
        if not all(isinstance(number, int | float) and -_MAX_SCALE < number < _MAX_SCALE for number in numbers) or (
            name == "image_std" and 0 in numbers
        ):
            raise InputError(f"{given}: {name} is {str(numbers)[:80]} in its image processor: copy that of the model")


def check_belongs(model: PreTrainedModel, processor: Any, given: str) -> None:
    """Refuses a processor whose tokens or patches are not those of the model.

    Args:
        model: without an adapter.
        processor: what is to encode for it.
        given: the model, for the message.

    Raises:
        InputError: names what differs, with both values.
    """
    rows = cast(Tensor, model.get_input_embeddings().weight).shape[0]
    check_head_rows(rows, processor.tokenizer, given)
    number = getattr(processor, "image_token_id", None)
    for name in _TOKENS:
        wanted = getattr(model.config, name, None)
        if None not in (number, wanted) and number != wanted:
            raise InputError(
                f"{given}: {name} is {wanted} in its config, and its processor's is {number}: take the config and the "
                "processor of one model"
            )
    vision = getattr(model.config, "vision_config", None)
    for mine, theirs in _OF_MODEL.items():
        made, wanted = getattr(processor.image_processor, mine, None), getattr(vision, theirs, None)
        if isinstance(made, int) and isinstance(wanted, int) and made != wanted:
            raise InputError(
                f"{given}: {mine} is {made} in its processor and {wanted} in its config: take those of one model"
            )


def _limit(name: str, by_area: bool) -> int:
    """The largest value of a setting; of one that counts pixels, as Qwen's does, an edge is an area."""
    if name.split(".")[0] in _PATCHES:
        return _MAX_PATCH
    if by_area and name == "size.longest_edge":
        return _UNBOUNDED
    return MAX_PIXELS if name == "min_pixels" or (by_area and name == "size.shortest_edge") else _MAX_SIDE


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What is nested in settings, by names with dots; None is left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif value is not None:
        yield name, value
