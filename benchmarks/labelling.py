"""What labelling through an endpoint costs beside the endpoint itself: time, memory, resuming, and how it paces itself.

    python -m benchmarks.labelling                  # 10,000 posts, about five minutes on two cores
    python -m benchmarks.labelling --posts 500 --pictures 100 --slow-posts 80

Everything is generated. The endpoint is tests/fault_server.py in a process of its own, on the same cores, without any
fault. Posts are labelled by the verb that a user runs, `mulcot predict --config teacher.yaml`, in a process of its own,
in turns with a loop of bare AsyncOpenAI calls that keeps nothing. What reached the server is read from its log.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from mulcot.prompts import get_prompt
from mulcot.types import DEFAULT_LABELS, SPLITS, Post

CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    posts: int
    small: int
    pictures: int
    slow_posts: int
    rate: float
    repeats: int
    concurrency: int


# --- in processes of their own


def measured() -> None:
    """Runs a verb as `mulcot` does and notes when its imports were done, when it ended and its highest memory."""
    report, *args = sys.argv[1:]
    from mulcot.cli import main

    for name in ("mulcot.stage_process", "stages", "data_modules", "mulcot.teachers.endpoint_client"):
        importlib.import_module(name)  # the command and the OpenAI teacher import them when they are needed

    began, cpu = time.monotonic(), time.process_time()
    code = main(args)
    ended, cpu = time.monotonic(), time.process_time() - cpu
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    Path(report).write_text(json.dumps({"began": began, "ended": ended, "cpu": cpu, "peak_mb": peak * 1024 / 1e6}))
    raise SystemExit(code)


def bare() -> None:
    """Asks the same questions with AsyncOpenAI alone, as many at a time, and keeps nothing."""
    from openai import AsyncOpenAI

    from mulcot.teachers.openai_endpoint import _response_format

    report, url, folder, concurrency = sys.argv[1:]
    lines = [line for file in Path(folder).glob("*.jsonl") for line in file.read_text().splitlines()]
    questions = [prompt(json.loads(line)["text"]) for line in lines]
    schema: Any = _response_format(DEFAULT_LABELS)

    async def work(client: AsyncOpenAI) -> None:
        while questions:
            reply = await client.chat.completions.create(
                model="fault-model",
                messages=[{"role": "user", "content": [{"type": "text", "text": questions.pop()}]}],
                temperature=0.7,
                max_tokens=1024,
                seed=0,
                response_format=schema,
            )
            json.loads(reply.choices[0].message.content or "")

    async def ask_all() -> dict[str, float]:
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            began, cpu = time.monotonic(), time.process_time()
            await asyncio.gather(*(work(client) for _ in range(int(concurrency))))
            return {
                "per_second": len(lines) / (time.monotonic() - began),
                "cpu": time.process_time() - cpu,
            }

    Path(report).write_text(json.dumps(asyncio.run(ask_all())))


def prompt(text: str) -> str:
    """What the teacher stage asks about a text."""
    return get_prompt("msc", "teacher_predict").render(Post("", text, Path()), DEFAULT_LABELS).text


# --- what is measured


def make_posts(folder: Path, posts: int, pictures: int, side: int) -> None:
    """Posts of 10 to 30 random words that name their label, dealt over so many different pictures."""
    draw = random.Random(0)
    (folder / "images").mkdir(parents=True)
    for number in range(pictures):
        colour = tuple(draw.randrange(256) for _ in range(3))
        picture = Image.effect_noise((side, side), 64).convert("RGB")
        Image.blend(picture, Image.new("RGB", picture.size, colour), 0.7).save(folder / "images" / f"{number}.jpg")
    with ExitStack() as stack:  # all in the first split but one for each of the others, which must not be empty
        train, *others = (stack.enter_context((folder / f"{split}.jsonl").open("w")) for split in SPLITS)
        for number in range(posts):
            words = [f"{draw.choice('bdfgklmnprst')}{draw.randrange(4096):x}" for _ in range(draw.randint(10, 30))]
            label = draw.choice(DEFAULT_LABELS)
            text = f"{number} {' '.join(words)} gold={label}"
            row = {"id": f"post-{number}", "text": text, "image": f"{number % pictures}.jpg", "label": label}
            (others[number] if number < len(others) else train).write(json.dumps(row) + "\n")


def label(folder: Path, run: str, url: str, concurrency: int, *, with_pictures: bool = False) -> dict[str, Any]:
    """Labels the posts of a folder with the verb; gives back what `measured` noted."""
    posts = {split: str(folder / f"{split}.jsonl") for split in SPLITS}
    reader = {"class_path": "Table", "init_args": {"files": posts, "image_root": str(folder / "images")}}
    endpoint = {"base_url": url, "model": "fault-model", "api_key_env": None, "concurrency": concurrency}
    endpoint |= {} if with_pictures else {"max_pixels": None}
    stage = {"teacher": {"init_args": endpoint}, "concurrency": concurrency}
    overlay, report = folder / f"{run}.yaml", folder / f"{run}.json"
    overlay.write_text(json.dumps({"model": {"init_args": stage}, "data": {"init_args": {"posts": reader}}}))
    child(
        "measured", report, "predict", "--config", "teacher.yaml", "--config", "teachers/openai.yaml",
        "--config", overlay, "--run_dir", folder / run, "--yes", "--trainer.enable_progress_bar", "false",
    )  # fmt: skip
    labels = sum(len(file.read_text().splitlines()) for file in (folder / run / "teacher").glob("rationales-*.jsonl"))
    wanted = sum(len(Path(file).read_text().splitlines()) for file in posts.values())
    if labels != wanted:
        raise SystemExit(f"{folder / run}: {labels} labels of {wanted} posts")
    return json.loads(report.read_text())


def child(function: str, *args: object) -> None:
    """Runs a function of this module in a process of its own."""
    code = f"from benchmarks.labelling import {function}; {function}()"
    command = [sys.executable, "-c", code, *map(str, args)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


def speed(server: ModuleType, folder: Path, run: str, sizes: Sizes, **settings: bool) -> dict[str, float]:
    """One labelling: requests a second from the first one's arrival until all is durable and written; and memory."""
    (folder / run).mkdir()
    with server.in_process(folder / run) as endpoint:
        found = label(folder, run, endpoint.url, sizes.concurrency, **settings)
        log = endpoint.log
    return {
        "per_second": len(log) / (found["ended"] - log[0].at),
        "before_first_request": log[0].at - found["began"],
        "requests": len(log),
        "cpu": found["cpu"],
        "peak_mb": found["peak_mb"],
        "port": int(endpoint.url.split(":")[2].split("/")[0]),
    }


def bare_speed(server: ModuleType, folder: Path, run: str, sizes: Sizes) -> dict[str, float]:
    """What the bare loop does in a second, and how long it computes for a request."""
    (folder / run).mkdir()
    with server.in_process(folder / run) as endpoint:
        child("bare", folder / f"{run}.json", endpoint.url, folder, sizes.concurrency)
    return json.loads((folder / f"{run}.json").read_text())


def resume(server: ModuleType, folder: Path, run: str, port: int, sizes: Sizes) -> dict[str, float]:
    """The seconds that a finished labelling takes once more, after the imports; no request may be sent."""
    ended = folder / run / "teacher" / "manifest.json"
    if ended.exists():
        ended.unlink()  # else the stage is refused as finished, which takes no time at all
    with server.in_process(folder / run, "--port", str(port)) as endpoint:  # the address belongs to a label's key
        before = len(endpoint.log)
        found = label(folder, run, endpoint.url, sizes.concurrency)
        if len(endpoint.log) != before:
            raise SystemExit(f"{folder / run}: resuming sent {len(endpoint.log) - before} requests")
    return {"seconds": found["ended"] - found["began"], "cpu": found["cpu"]}


def pace(server: ModuleType, folder: Path, sizes: Sizes) -> dict[str, float]:
    """How the adaptive rate does at a server that allows so many requests a second, and one second's worth at once."""
    (folder / "run").mkdir()
    with server.in_process(folder / "run", "--rate", str(sizes.rate), "--delay", "0.05") as endpoint:
        label(folder, "run", endpoint.url, sizes.concurrency)
        log = endpoint.log
    refused = [sending for sending in log if sending.status == 429]
    seconds = log[-1].at - log[0].at
    until: dict[str, float] = {}
    early = 0
    for sending in log:
        early += sending.at < until.get(sending.idempotency_key, 0)
        if sending.retry_after is not None:
            until[sending.idempotency_key] = sending.at + sending.retry_after
    return {
        "seconds": seconds,
        "share_used": (len(log) - len(refused)) / (sizes.rate * seconds + max(1, sizes.rate)),
        "share_of_429": len(refused) / len(log),
        "early": early,
    }


def measure(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """All numbers."""
    sys.path.append(str(CHECKOUT / "tests"))
    import fault_server

    plain, small, pictures, slow = (folder / name for name in ("plain", "small", "pictures", "slow"))
    make_posts(plain, sizes.posts, 1, 8)
    make_posts(small, sizes.small, 1, 8)
    make_posts(pictures, sizes.pictures, min(sizes.pictures, 500), 300)
    make_posts(slow, sizes.slow_posts, 1, 8)
    found: dict[str, Any] = {"runs": [], "bare": [], "small": [], "pictures": [], "resume": []}
    for number in range(sizes.repeats):
        found["bare"].append(bare_speed(fault_server, plain, f"bare-{number}", sizes))
        found["runs"].append(speed(fault_server, plain, f"run-{number}", sizes))
        found["resume"].append(resume(fault_server, plain, f"run-{number}", found["runs"][-1]["port"], sizes))
        found["small"].append(speed(fault_server, small, f"run-{number}", sizes))
        found["pictures"].append(speed(fault_server, pictures, f"run-{number}", sizes, with_pictures=True))
    found["pace"] = pace(fault_server, slow, sizes)
    return {"sizes": vars(sizes), "cores": os.cpu_count(), **found}


# --- what is shown


def show(found: dict[str, Any]) -> None:
    """The table."""
    sizes, paced = found["sizes"], found["pace"]

    def values(name: str, key: str) -> list[float]:
        return [run[key] for run in found[name]]

    speeds, bare_speeds = values("runs", "per_second"), values("bare", "per_second")
    ratios = [mine / bare for mine, bare in zip(speeds, bare_speeds, strict=True)]
    above = [all_ - few for all_, few in zip(values("runs", "peak_mb"), values("small", "peak_mb"), strict=True)]
    more = max(1, sizes["posts"] - sizes["small"])  # what every run costs once is left out
    cpu = [1000 * (all_ - few) / more for all_, few in zip(values("runs", "cpu"), values("small", "cpu"), strict=True)]
    bare_cpu = [1000 * seconds / sizes["posts"] for seconds in values("bare", "cpu")]
    with_pictures = f"requests/s with 300-pixel pictures ({sizes['pictures']:,} posts)"
    rows = [
        ("requests/s, every label durable", spread(speeds, "{:.0f}"), "≥ 300"),
        ("requests/s of a bare AsyncOpenAI loop", spread(bare_speeds, "{:.0f}"), ""),
        ("ratio of the two", spread(ratios, "{:.2f}"), "≥ 0.6"),
        ("processor time for a request, ms", spread(cpu, "{:.1f}"), ""),
        ("the same of the bare loop, ms", spread(bare_cpu, "{:.1f}"), ""),
        ("from imports to the first request, s", spread(values("runs", "before_first_request"), "{:.1f}"), ""),
        (f"highest memory above that of {sizes['small']:,} posts, MB", spread(above, "{:.0f}"), "< 200"),
        ("resuming the finished store, s after imports", spread(values("resume", "seconds"), "{:.1f}"), "< 2"),
        ("processor time of that, s", spread(values("resume", "cpu"), "{:.1f}"), ""),
        (with_pictures, spread(values("pictures", "per_second"), "{:.0f}"), "≥ 100"),
        (f"server that allows {sizes['rate']:g}/s: share used", f"{paced['share_used']:.1%}", "≥ 85%"),
        ("its share of 429s", f"{paced['share_of_429']:.1%}", "≤ 2%"),
        ("requests to it before their Retry-After", f"{paced['early']:.0f}", "0"),
    ]
    title = f"{sizes['posts']:,} posts, {sizes['concurrency']} at a time, {found['cores']} cores"
    table = Table(title=f"{title}, {sizes['repeats']} runs each in turns: median (lowest-highest)")
    for column in ("", "measured", "to be"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def spread(values: Sequence[float], form: str) -> str:
    """A median with its range."""
    return f"{form.format(median(values))} ({form.format(min(values))}-{form.format(max(values))})"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.labelling", description="What labelling through an endpoint costs."
    )
    parser.add_argument("--posts", type=int, default=10_000, help="posts without pictures")
    parser.add_argument("--small", type=int, default=100, help="posts of the run that memory is compared with")
    parser.add_argument("--pictures", type=int, default=1000, help="posts with pictures")
    parser.add_argument("--slow-posts", type=int, default=500, help="posts for the server that allows few requests")
    parser.add_argument("--rate", type=float, default=8, help="requests a second that it allows")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, but for the slow server")
    parser.add_argument("--concurrency", type=int, default=64, help="requests under way at once")
    parser.add_argument("--json", action="store_true", help="prints all numbers as JSON")
    given = vars(parser.parse_args())
    as_json = given.pop("json")
    with TemporaryDirectory() as temporary:
        found = measure(Path(temporary), Sizes(**given))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
