"""What tests of resuming share: an undisturbed fit, and one that broke off."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def resuming() -> ModuleType:
    """The module tests/resuming.py."""
    folder = str(Path(__file__).resolve().parents[1])
    if folder not in sys.path:
        sys.path.append(folder)  # commands of this process import `resuming.SignalAt` too
    return importlib.import_module("resuming")


@pytest.fixture(scope="session")
def whole(chain: Path, resuming: ModuleType) -> dict[bool, Path]:
    """An undisturbed fit of all weights, and one of an adapter."""
    for adapter in (False, True):
        assert resuming.run(resuming.fit(chain, f"whole{adapter}", adapter=adapter)) == 0
    return {adapter: chain / f"whole{adapter}" for adapter in (False, True)}


@pytest.fixture(scope="session")
def broken(chain: Path, resuming: ModuleType) -> Path:
    """A fit of all weights that broke off, see `resuming.begun`; to be copied."""
    return resuming.begun(chain, "cut_short")


@pytest.fixture
def heeded() -> Iterator[None]:
    """SIGINT is not ignored, as it is in a shell's background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
