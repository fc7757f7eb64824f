"""Where the time of a side of `benchmarks.peers` goes, from torch's profiler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

RANK: Final = 16
"""Of the adapter; no other size of a preset is equal to it."""
_RANGES: Final = {
    "enumerate(DataLoader)": "waiting for batches",
    "vision tower": "vision tower",
}
_ATTENTION: Final = ("scaled_dot_product", "flash_attention", "softmax")
_DROPOUT: Final = ("dropout", "bernoulli")
_OPTIMIZER: Final = ("adam", "foreach")
_PRODUCTS: Final = ("mm", "addmm", "bmm", "linear", "baddbmm")


def shares(profiler: Any, vocab: int) -> dict[str, float]:
    """Seconds of every part, the largest first; together what the profiler saw of the processor's time.

    Args:
        profiler: A finished `torch.profiler.profile` with shapes.
        vocab: Rows of the head, by which its operators are told.
    """
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        seconds[_part(event, vocab)] += event.self_cpu_time_total / 1e6
    return dict(sorted(seconds.items(), key=lambda pair: -pair[1]))


def _part(event: Any, vocab: int) -> str:
    """What an operator works for."""
    above = event
    while above is not None:
        for name, part in _RANGES.items():
            if above.name.startswith(name):
                return part
        above = above.cpu_parent
    sizes = set(_sizes(event.input_shapes))
    name = event.name.removeprefix("aten::").strip("_")
    if any(word in name for word in _OPTIMIZER):
        return "optimizer"
    if vocab in sizes:
        return "head and loss"
    if any(word in name for word in _ATTENTION):
        return "attention"
    if any(word in name for word in _DROPOUT):
        return "dropout"
    if name in _PRODUCTS:
        return "adapter's products" if RANK in sizes else "frozen layers' products"
    return "the rest, elementwise"


def _sizes(shapes: Any) -> Iterator[int]:
    """All sizes in nested lists of shapes."""
    for each in shapes or ():
        if isinstance(each, int):
            yield each
        else:
            yield from _sizes(each)
