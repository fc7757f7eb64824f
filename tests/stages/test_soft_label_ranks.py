"""One cache, whoever builds it: one process, two, or two that go on where a killed one stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mulcot.cli import main
from mulcot.soft_labels import SoftLabelCache
from mulcot.soft_labels.forms import CachedView, Key

pytestmark = pytest.mark.slow
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
# Shards of a few responses, and no way to clean up after the fifth of them.
KILLED = """
import os, signal, sys
from functools import partial
from mulcot.cli import main
from mulcot.soft_labels import SoftLabelWriter
from stages import soft_label_build

class Writer(SoftLabelWriter):
    def flush(self):
        if len(list(self.folder.glob("*.json"))) == 5:
            (self.folder / "shard-r000-00005.safetensors").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        super().flush()

soft_label_build.SoftLabelWriter = partial(Writer, shard_tokens=300)
main(sys.argv[1:])
"""


def call(*command: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=600, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def content(stage: Path) -> dict[Key, CachedView]:
    return dict(SoftLabelCache(stage / "cache").items())


def assert_same(one: dict[Key, CachedView], other: dict[Key, CachedView]) -> None:
    assert one.keys() == other.keys()
    for key, view in one.items():
        for name, value in view.tensors().items():
            assert torch.equal(value, other[key].tensors()[name]), (key, name)


@pytest.mark.parametrize("form", ["top_k", "sampled"])
def test_two_processes_and_a_killed_build_give_the_cache_of_one(
    embedded: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batches of 8 are the same for one process and for two, so that the numbers are, bit for bit."""

    def command(stage: str) -> list[str]:
        return ["predict", "--config", "soft_labels.yaml", "--run_dir", str(embedded), "--stage", f"{stage}_{form}",
                "--model.init_args.pretrained", str(embedded / "models" / "assistant"), *QUIET,
                "--model.init_args.soft_label_form", form, "--data.init_args.eval_batch_size", "8",
                "--data.init_args.rationales", f'["{embedded}/teacher/rationales-train.jsonl"]']  # fmt: skip

    assert main(command("one")) == 0
    line = [line for line in capsys.readouterr().out.splitlines() if line.startswith("soft labels: ")]
    one = embedded / f"one_{form}"
    assert len(line) == 1
    call("-m", "mulcot", *command("two"), *TWO)
    assert_same(content(one), content(embedded / f"two_{form}"))

    call("-c", KILLED, *command("killed"), code=-signal.SIGKILL)
    killed = embedded / f"killed_{form}"
    assert not (killed / "manifest.json").exists()
    call("-m", "mulcot", *command("killed"), *TWO)
    assert_same(content(one), content(killed))

    metrics = [json.loads((stage / "metrics.json").read_text()) for stage in (one, embedded / f"two_{form}", killed)]
    assert metrics[2]["rows_found_finished"] > 0
    for found in metrics[1:]:
        assert found["verification"]["tokens"] == metrics[0]["verification"]["tokens"] > 96
        assert found["kept_mass"] == pytest.approx(metrics[0]["kept_mass"], rel=1e-9)
        assert found["verification"]["near"] == pytest.approx(metrics[0]["verification"]["near"], rel=1e-6)
