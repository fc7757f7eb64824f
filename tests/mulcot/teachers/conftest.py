"""What the tests of teachers share: requests with a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mulcot.prompts import get_prompt
from mulcot.teachers.base import TeacherRequest
from mulcot.types import DEFAULT_LABELS, Post


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four times as wide as high."""
    path = tmp_path_factory.mktemp("pictures") / "wide.png"
    Image.linear_gradient("L").resize((400, 100)).convert("RGB").save(path)
    return path


@pytest.fixture
def request_of(picture: Path) -> Callable[..., TeacherRequest]:
    """Makes the request about a numbered post."""

    def make(number: int = 0, **more: Any) -> TeacherRequest:
        post = Post(str(number), f"Post {number} on a grey day gold=neutral", picture)
        prompt = get_prompt("msc", "teacher_predict").render(post, DEFAULT_LABELS)
        return TeacherRequest(post, prompt, "predict", **{"idempotency_key": f"key-{number}", **more})

    return make
