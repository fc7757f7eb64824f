"""The student's training step: the published recipe against ours, measure by measure.

    python -m benchmarks.student_step --data_root FOLDER            # val.json and Images/ inside; about 15 minutes
    python -m benchmarks.student_step --data_root FOLDER --quick    # few posts and arms, to see that it runs
    python -m benchmarks.student_step --data_root FOLDER --arms online cache --json FILE
    python -m benchmarks.student_step --data_root FOLDER --preset qwen2.5-vl-7b-3b                     # a GPU of 80 GB
    python -m benchmarks.student_step --data_root FOLDER --preset qwen2.5-vl-7b-3b --layers 1 --quick  # on a CPU

The published side is benchmarks/published_recipe.py; ours is the verb that a user runs, `mulcot fit`, with the flags of
the arm. Both sides have the same models, adapters, posts, tokens, micro-batches, threads and attention (sdpa). Each arm
runs in a process of its own, arms in turns; a step is measured from the end of the one before, over one epoch of the
same posts after a warm-up. The cost of a soft-label cache is measured, too, and counted once over 20 epochs. Memory is
the highest resident (on a GPU: allocated) above what was taken before the first batch, and as a whole. Lightning,
reading pictures and logging are in our time; encoding is not in the published one's. FLOPs are counted by formula from
the shapes that ran, padding included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch

from benchmarks.presets import IMAGE_SIZE, PRESETS, Preset
from benchmarks.student_step_tables import goals, show
from benchmarks.workload import Workload, mulcot, prepare, run

EPOCHS: Final = 20
"""Epochs that a cache serves, as published."""
LORA_DROPOUT: Final = 0.05
PAIRED: Final[dict[str, Any]] = {"data.init_args.layout": "paired"}
SHARED: Final[dict[str, Any]] = {"data.init_args.layout": "shared"}
ONLINE: Final[dict[str, Any]] = {"model.init_args.online_assistant": True, "data.init_args.soft_labels": None}
QUIRKS: Final = {
    "kl_everywhere": True,
    "no_temperature_scale": True,
    "batch_mean": True,
    "assistant_dropout": True,
    "resized_heads": True,
}


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    title: str
    """What it adds to the arm before."""
    flags: dict[str, Any] | None = None
    """Flags of `mulcot fit`, over those that all arms share; None for the published recipe."""
    cached: bool = False
    """Whether it reads soft labels, which are built for it and counted."""
    whole_step: bool = False
    """Whether a step is one micro-batch; else micro-batches are the published two posts."""
    vision_lora: bool = False
    """Of the published recipe: whether the adapter is also on the tower's MLPs, as published."""
    keeps: bool = False
    """Whether the C library keeps what is freed, instead of giving large blocks back to the kernel at once."""


KEEPING: Final = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_ARENA_MAX": "1"}
"""Has glibc keep freed memory. Every [positions, vocabulary] tensor of the published recipe comes from the kernel anew,
page by page; this shows how much of its time that is, which a GPU's allocator would not take."""
GROUPED: Final = {"data.init_args.length_pool": 16}
AGAIN: Final = {"model.init_args.activation_checkpointing": True}
ARMS: Final[dict[str, Arm]] = {
    "as_published": Arm("adapter also on the tower's MLPs", vision_lora=True),
    "published": Arm("adapter on the language model alone"),
    "published_keeping": Arm("glibc keeps freed memory", keeps=True),
    "quirks": Arm("mulcot, published quirks", ONLINE | PAIRED | {"quirks": True}),
    "online": Arm("mulcot, head on responses alone", ONLINE | PAIRED),
    "grouped": Arm("+ length_pool 16", ONLINE | PAIRED | GROUPED),
    "shared": Arm("+ prompt and picture of a post once", ONLINE | SHARED | GROUPED),
    "cache_paired": Arm("paired, soft-label cache, top-64", PAIRED | GROUPED, cached=True),
    "cache": Arm("+ soft-label cache, top-64", SHARED | GROUPED, cached=True),
    "cache_keeping": Arm("glibc keeps freed memory", SHARED | GROUPED, cached=True, keeps=True),
    "shared_again": Arm("assistant beside it, activations computed again", ONLINE | SHARED | GROUPED | AGAIN),
    "cache_again": Arm("cache, activations computed again", SHARED | GROUPED | AGAIN, cached=True),
    "whole": Arm("+ a step in one micro-batch", SHARED | GROUPED, cached=True, whole_step=True),
}
"""Every arm of the ladder; a further measure is a further line with the flags that switch it on."""
REFERENCE: Final = "published"
QUICK: Final = ("published", "shared", "cache")


@dataclass(frozen=True)
class Bench:
    """What is measured, and where."""

    preset: Preset
    """The models."""
    layers: int | None
    """Layers of each part where they were shrunk."""
    workload: Workload
    """The posts."""
    folder: Path
    """For what runs leave."""
    threads: int
    """Cores of each process."""

    @property
    def exact(self) -> bool:
        """Whether parts can be timed in every run; on a GPU that needs waiting, so it is a run of its own."""
        return self.preset.accelerator == "cpu"

    def measure(self, name: str, *, exact: bool) -> dict[str, Any]:
        """One run of an arm."""
        arm = ARMS[name]
        path = self.folder / "found.json"
        path.unlink(missing_ok=True)
        variables = KEEPING if arm.keeps else {}
        if arm.flags is None:
            given = {"vision_lora": arm.vision_lora, "exact": exact, "path": str(path)}
            given["warm_up"] = self.preset.posts_per_step // self.preset.micro_batch
            self.child("child", given, variables)
        else:
            flags = self.common() | self.of_fit(arm, path, exact) | self.resolved(arm.flags)
            mulcot(
                "fit",
                "--config",
                "student.yaml",
                *as_flags(flags),
                "--fresh",
                threads=self.threads,
                environment=variables,
            )
        return json.loads(path.read_text())

    def build(self) -> dict[str, Any]:
        """Builds the soft-label cache; gives its seconds."""
        path = self.folder / "built.json"
        flags = self.common() | {
            "stage": "soft_labels",
            "model.init_args.pretrained": self.workload.models["assistant"],
            "model.init_args.dtype": self.preset.dtype,
            "data.init_args.eval_batch_size": 8,
            "trainer.callbacks": probe(path, 0, exact=False),
        }
        mulcot("predict", "--config", "soft_labels.yaml", *as_flags(flags), "--fresh", threads=self.threads)
        return json.loads(path.read_text())

    def child(self, function: str, told: dict[str, Any], environment: dict[str, str] | None = None) -> None:
        """Runs a function of the published recipe in a process of its own."""
        shared = {
            "preset": self.preset.name,
            "layers": self.layers,
            "accelerator": self.preset.accelerator,
            "posts_per_step": self.preset.posts_per_step,
        }
        workload = asdict(self.workload) | {"folder": str(self.workload.folder)}
        code = f"from benchmarks.published_recipe import {function}; {function}()"
        given = json.dumps(shared | {"workload": workload} | told)
        run([sys.executable, "-c", code, given], self.threads, environment)

    def common(self) -> dict[str, Any]:
        """Flags of both verbs."""
        return {
            "run_dir": self.folder / "run",
            "model.init_args.image_size": IMAGE_SIZE,
            "data.init_args.posts": self.workload.reader,
            "data.init_args.rationales": [self.workload.files["rationales"]],
            "trainer.accelerator": self.preset.accelerator,
            "trainer.enable_progress_bar": False,
        }

    def of_fit(self, arm: Arm, path: Path, exact: bool) -> dict[str, Any]:
        """Flags of a fit: what the published side has, too, and one post to validate on once it is over."""
        preset = self.preset
        accumulate = 1 if arm.whole_step else preset.posts_per_step // preset.micro_batch
        return {
            "stage": "student",
            "model.init_args.pretrained": self.workload.models["student"],
            "model.init_args.assistant": self.workload.models["assistant"],
            "model.init_args.assistant_dtype": preset.dtype,
            "model.init_args.dtype": preset.dtype,
            "model.init_args.lora": {"r": preset.lora, "alpha": 2 * preset.lora, "dropout": LORA_DROPOUT},
            "model.init_args.optimizer": {"learning_rate": 3e-4},
            "data.init_args.references": None,
            "data.init_args.soft_labels": self.folder / "run" / "soft_labels" / "cache",
            "data.init_args.posts_per_step": preset.posts_per_step,
            "data.init_args.length_pool": 1,
            "data.init_args.picture_cache_mb": 0,
            "data.init_args.eval_batch_size": 1,
            "trainer.accumulate_grad_batches": accumulate,
            "trainer.precision": preset.precision,
            "trainer.max_epochs": 2,
            "trainer.check_val_every_n_epoch": 2,
            "trainer.gradient_clip_val": None,
            "trainer.log_every_n_steps": 50,
            "trainer.callbacks": probe(path, accumulate, exact=exact),
            "inspection.rationales": 0,
            "test_after_fit": False,
        }

    def resolved(self, flags: dict[str, Any]) -> dict[str, Any]:
        """The flags of an arm; the KL of the published code is in the type of its logits."""
        flags = dict(flags)
        if flags.pop("quirks", False):
            flags["model.init_args.published"] = QUIRKS | {"kl_in_bf16": self.preset.dtype == "bfloat16"}
        return flags


def probe(path: Path, warm_up: int, *, exact: bool) -> list[dict[str, Any]]:
    """`trainer.callbacks` with the one that measures."""
    arguments = {"path": str(path), "warm_up": warm_up, "exact": exact}
    return [{"class_path": "benchmarks.step_probe.Probe", "init_args": arguments}]


def as_flags(flags: dict[str, Any]) -> list[str]:
    """Flags as the command line takes them."""
    given = []
    for name, value in flags.items():
        text = str(value) if isinstance(value, str | Path) else json.dumps(value)
        given += [f"--{name}", text]
    return given


def measure(bench: Bench, names: Sequence[str], repeats: int, forwards: int) -> dict[str, Any]:
    """All numbers."""
    found: dict[str, Any] = {"runs": {name: [] for name in names}, "builds": [], "parts": {}}
    cached = [name for name in names if ARMS[name].cached]
    for repeat in range(repeats):
        if cached:
            found["builds"].append(bench.build())
        for name in names if repeat % 2 == 0 else reversed(names):
            found["runs"][name].append(bench.measure(name, exact=bench.exact))
    for name in names:
        runs = found["runs"][name]
        found["parts"][name] = runs[len(runs) // 2] if bench.exact else bench.measure(name, exact=True)
    path = bench.folder / "forwards.json"
    bench.child("bare", {"path": str(path), "times": forwards})
    found["forwards"] = json.loads(path.read_text())
    return found


def matmul_flops(preset: Preset, threads: int) -> float:
    """FLOPs a second of a large matrix product: what this machine has at most, for arithmetic of the preset.

    On a CPU of processor time, so that others on the same cores do not count.
    """
    code = (
        "import time, torch\n"
        f"kind, device = torch.{preset.dtype}, {'cuda' if preset.accelerator == 'gpu' else 'cpu'!r}\n"
        "wait = torch.cuda.synchronize if device == 'cuda' else lambda: None\n"
        "clock = time.perf_counter if device == 'cuda' else time.process_time\n"
        "size = 8192 if device == 'cuda' else 2048\n"
        "a, best = torch.randn(size, size, device=device).to(kind), 1e9\n"
        "for _ in range(7):\n"
        "    wait(); began = clock(); a @ a; wait(); best = min(best, clock() - began)\n"
        "print(2 * size**3 / best)"
    )
    return float(run([sys.executable, "-c", code], threads).split()[-1])


def machine(threads: int) -> dict[str, Any]:
    """What it ran on."""
    models = {line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": ", ".join(sorted(models)) or platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "gpu": gpu,
        "torch": torch.__version__,
        "load_before": os.getloadavg()[0],
    }


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, required=True, help="Holds val.json and Images/.")
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="The models.")
    parser.add_argument("--layers", type=int, help="Shrinks each part to so many layers, to see that it runs.")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="By default all.")
    parser.add_argument("--posts", type=int, help="Posts of the measured epoch: 16, of a quick run 4.")
    parser.add_argument("--repeats", type=int, help="Runs of each arm: 3, of a quick run 1.")
    parser.add_argument("--forwards", type=int, default=3, help="Runs of each of the four forwards.")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="Cores of each process.")
    parser.add_argument("--peak_tflops", type=float, help="Of the device, by its data sheet; else a product is timed.")
    parser.add_argument("--quick", action="store_true", help="Few posts, three arms, one run of each.")
    parser.add_argument("--json", type=Path, help="Writes all numbers to a file, too.")
    return parser.parse_args()


def main() -> None:
    """Measures and shows."""
    given = arguments()
    preset = PRESETS[given.preset]
    if given.layers:
        preset = preset.shrunk(given.layers)
    if preset.accelerator == "gpu" and not torch.cuda.is_available():
        preset = replace(preset, accelerator="cpu")
        if not given.layers:
            raise SystemExit(f"--preset {preset.name} has real shapes and there is no GPU: give --layers 1 to try it")
    usual = [name for name in ARMS if preset.accelerator == "cpu" or not ARMS[name].keeps]
    names = list(given.arms or (QUICK if given.quick else usual))
    if REFERENCE not in names:
        names.insert(0, REFERENCE)
    posts, repeats = given.posts or (4 if given.quick else 16), given.repeats or (1 if given.quick else 3)
    preset = replace(preset, posts_per_step=min(posts, preset.posts_per_step))
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        on = machine(given.threads)
        workload = prepare(folder, preset, given.data_root.resolve(), posts, given.threads)
        bench = Bench(preset, given.layers, workload, folder / "arms", given.threads)
        bench.folder.mkdir()
        found = measure(bench, names, repeats, given.forwards)
    peak = given.peak_tflops * 1e12 if given.peak_tflops else matmul_flops(preset, given.threads)
    found |= {"machine": on, "preset": asdict(preset), "peak_flops": peak, "epochs": EPOCHS, "reference": REFERENCE}
    found |= {"titles": {name: ARMS[name].title for name in names}, "cached": [n for n in names if ARMS[n].cached]}
    found["workload"] = asdict(workload) | {"folder": "", "models": {}, "files": {}, "image_root": ""}
    if given.json:
        given.json.write_text(json.dumps(found | {"goals": goals(found, preset)}, indent=2) + "\n")
    show(found, preset)
    if PRESETS[given.preset].accelerator != preset.accelerator:
        print(f"with a GPU: python -m benchmarks.student_step --data_root FOLDER --preset {preset.name} --json FILE")


if __name__ == "__main__":
    main()
