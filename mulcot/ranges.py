"""Numbers within a range, as types: a configuration's parser refuses others before anything is loaded."""

from typing import Annotated, Final

from pydantic import Field

LARGEST_SIDE: Final = 7_000
"""Pixels: with both sides so long a picture has as many as are decoded of one."""

Count = Annotated[int, Field(ge=1)]
"""1, 2, ..."""
Natural = Annotated[int, Field(ge=0)]
"""0, 1, ..."""
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
"""Of a picture, in pixels."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number above 0."""
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number, 0 or above."""
Share = Annotated[float, Field(ge=0, le=1)]
"""0 to 1, both included."""
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
"""0 to 1, without 1."""
