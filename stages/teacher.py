"""The teacher stage: `mulcot predict` over posts, which asks a teacher for a rationale of each."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from mulcot.ranges import Count, Natural, NonNegative
from mulcot.teachers.base import Teacher, TeacherPausedError
from mulcot.teachers.filters import RationaleFilter, Remembers
from mulcot.teachers.limits import Budget, Closable, Prices, ask_consent, costs, estimate, prices_of
from mulcot.teachers.settled import Conclusion, Settled
from mulcot.teachers.store import LabelStore
from mulcot.teachers.store_summary import (
    SplitCounts,
    experience,
    note_prices,
    print_reconciliation,
    reconcile,
    spent,
)
from mulcot.types import DEFAULT_LABELS, InputError, Post
from stages.background import BackgroundLoop
from stages.dialogue import Dialogue, refuse_other_prompts
from stages.labelling_progress import LabellingProgress, stderr_console
from stages.labelling_ranks import Ranks
from stages.outcomes import PromptWords, Rules
from stages.post_loaders import expected_posts, posts_of, split_names
from stages.rationale_files import replayed_row, settled_row, write_metrics, write_rationale_files
from stages.replay import Replay

DRAIN_SECONDS: Final = 30.0
"""How long a run that is being stopped waits for replies that are already paid for."""
_SETTLE_AT_ONCE: Final = 200
_BATCH: Final = 1 << 20
"""More posts than any batch has: orders posts by batch, then within it."""


class TeacherStage(LightningModule):
    """Asks a teacher about every post and writes the rationales that hold.

    Batches are lists of posts. They feed one event loop that outlives them: `predict_step` hands its posts over and
    waits only while `concurrency` of them are under way. A run that ends early, by an error, a limit or Ctrl-C, lets
    the requests already sent finish, and the next run over the same `stage_dir` goes on from the label store.

    With several processes the posts are dealt out as `MultimodalDataModule` does, batch by batch in turn. Each process
    labels into its own store; rank 0 merges them at the end. Posts of equal content are asked about once by each
    process that has one of them.

    Writes `<stage_dir>/labels.sqlite` while it runs; at the end `rationales-<split>.jsonl` and
    `rejects-<split>.jsonl` for every split, in the order of the posts, and `metrics.json`.

    Args:
        teacher: Who writes the rationales.
        stage_dir: The stage's folder.
        labels: The labels of the data set.
        max_reasks: How often a refused reply is asked for again, for predicting and for explaining each.
        concurrency: How many posts are under way at once, in each process.
        accept_unlabelled: Whether a post without a gold label takes the teacher's own label.
        rationales_per_post: How many rationales of each post are asked for; equal ones are refused.
        filters: What a rationale must be beside well-formed and right; what a filter refuses is asked for again.
        max_requests: How many requests may be sent in all, over all runs with this label store.
        max_usd: How many US dollars may be spent, likewise; exceeded by no more than what is under way.
        prices: What a million tokens cost in US dollars, instead of the teacher's own prices.
        prompt: In whose words the teacher is asked to predict; `trained` are those that assistant and student learn,
            for a model of mulcot's own as a teacher: a teacher's prompt, four times as long, is noise to it.
        other_prompts: Goes on with a label store that answers another version of the prompts: all is asked anew.
    """

    predict_kind = "posts"
    reports_progress = True
    """It writes `progress.json` itself: batches are handed over long before their posts are labelled."""

    def __init__(
        self,
        teacher: Teacher,
        stage_dir: Path,
        labels: Sequence[str] = DEFAULT_LABELS,
        max_reasks: Natural = 2,
        concurrency: Count = 16,
        accept_unlabelled: bool = False,
        rationales_per_post: Count = 1,
        filters: list[RationaleFilter] | None = None,
        max_requests: Natural | None = None,
        max_usd: NonNegative | None = None,
        prices: Prices | None = None,
        prompt: PromptWords = "teacher",
        other_prompts: bool = False,
    ) -> None:
        super().__init__()
        if concurrency < 1:
            raise InputError(f"concurrency: must be 1 or more, is {concurrency}")
        self.stage_dir = Path(stage_dir)
        self.concurrency = concurrency
        self.other_prompts = other_prompts
        self.teacher = teacher
        self.yes = False
        """Whether requests that cost money are sent without asking; the command's `--yes`."""
        self._rules = Rules(
            tuple(labels), max_reasks, accept_unlabelled, rationales_per_post, tuple(filters or ()), prompt
        )
        self._limits = Budget(max_requests, max_usd, prices_of(teacher, prices))
        self._ranks: Ranks | None = None
        self._store: LabelStore | None = None
        self._dialogue: Dialogue | None = None
        self._loop: BackgroundLoop | None = None
        self._progress: LabellingProgress | None = None
        self._split_names: list[str] = []
        self._handed = 0
        self._replay: Replay | None = None
        self._rows: list[Settled] = []
        self._conclusions: list[tuple[str, Conclusion]] = []
        self._replayed: list[Settled] = []

    def configure_callbacks(self) -> list[Callback]:
        """The callback that closes the stage when the run fails anywhere."""
        return [_CloseOnException()]

    def setup(self, stage: str) -> None:
        """Refuses what cannot work before anything is paid for.

        Raises:
            InputError: A reduced precision (posts hold no numbers to reduce).
        """
        precision = str(self.trainer.precision)
        if precision != "32-true" and not precision.endswith("mixed"):
            # Lightning would try to convert the numbers in a batch, and fail on posts with words about dataclasses.
            raise InputError(
                f"the teacher stage computes nothing: trainer.precision is {precision!r}, must be '32-true'"
            )
        if self.trainer.progress_bar_callback is not None:
            self.trainer.progress_bar_callback.disable()  # it would count batches that were only handed over

        # Lightning's notice that the hook below was overridden although there is a data module; it is meant.
        warnings.filterwarnings("ignore", message="You have overridden `transfer_batch_to_device` in `LightningModule`")

    def on_predict_start(self) -> None:
        """Opens the label store, agrees on what it may cost and starts the event loop.

        Raises:
            InUseError: Another process holds the store.
            InputError: The store answers other prompts or cannot be written, the data module names too few splits,
                or there is no consent to the cost.
        """
        self._split_names = split_names(self.trainer)
        self._ranks = Ranks(self.trainer, self.stage_dir)
        self._store = self._ranks.open_first()
        error: InputError | None = None
        unanswered = (0, 0)
        try:
            self._store = self._store or self._ranks.open_own()
            self._dialogue = self._prepare(self._store, self._ranks)
            self._replay = Replay(self.teacher, self._store, self._rules)
            if costs(self.teacher):
                unanswered = self._replay.unanswered(posts_of(self.trainer), self._dialogue)
        except InputError as refused:  # told when all are asked: the others wait
            error = refused
        self._agree_on_cost(unanswered, error)
        assert self._dialogue is not None
        assert self._store is not None
        self._store.forget_settled()
        self._loop = BackgroundLoop(self.concurrency)
        first = self._ranks.rank == 0
        shown = first and self.trainer.progress_bar_callback is not None
        self._progress = LabellingProgress(
            self.stage_dir / "progress.json" if first else None,
            self._dialogue.budget,
            expected_posts(self.trainer, self._split_names),
            stderr_console() if shown else None,
        )

    def transfer_batch_to_device(self, batch: list[Post], device: torch.device, dataloader_idx: int) -> list[Post]:
        """The batch as it is: posts live on no device."""
        return batch

    def predict_step(self, batch: list[Post], batch_idx: int, dataloader_idx: int = 0) -> int:
        """Hands the posts over and says how many they are; their dialogues end later.

        Raises:
            Exception: What an earlier dialogue raised; the run stops there.
        """
        assert self._loop is not None
        assert self._ranks is not None
        first = (batch_idx * self._ranks.size + self._ranks.rank) * _BATCH
        assert self._replay is not None
        split = self._split_names[dataloader_idx]
        for place, (post, found) in enumerate(zip(batch, self._replay.find(batch), strict=True)):
            if found is None:
                self._loop.submit(partial(self._label, post, split, first + place))
            else:
                self._replayed.append(replayed_row(found, post, split, first + place))
                assert self._progress is not None
                self._progress.settled(1, 1)
        self._handed += len(batch)
        return len(batch)

    def on_predict_end(self) -> None:
        """Waits for every dialogue, of all processes, and writes the files.

        Raises:
            Exception: What a dialogue raised, of whatever process; no file is written then.
        """
        assert self._loop is not None
        assert self._progress is not None
        self._progress.expect(self._handed)
        self._loop.finish()
        self._end_loop()
        self._meet(None)
        if self._store is not None:
            self._store.set_note("ended", "yes")
            counts = write_rationale_files(self.stage_dir, self._store, self._split_names)
            write_metrics(self.stage_dir, counts, self._split_names)
            self._tell(counts)
        self._close_store()

    def stop(self, now: bool = False) -> None:
        """Sends nothing new from now on.

        Args:
            now: Whether what is under way is not waited for either.
        """
        dialogue = self._dialogue
        if dialogue is not None:
            dialogue.interrupt()
            if now:
                dialogue.abandon()

    def close(self, error: BaseException) -> None:
        """Ends a run before its end: waits for the replies to what was already sent, and closes the store.

        Args:
            error: Why it ends.

        Raises:
            SystemExit: The error is told of by rank 0.
        """
        try:
            if isinstance(error, KeyboardInterrupt) and self._ranks is not None:
                self._ranks.hand_on()
            self._end_loop()
            if isinstance(error, KeyboardInterrupt):
                if self._ranks is not None:
                    self._ranks.wait_for_others(DRAIN_SECONDS)
            else:
                self._meet(error if isinstance(error, Exception) else None)
        except Exception as raised:
            if raised is not error:
                raise
        finally:
            if self._store is not None and isinstance(error, TeacherPausedError | KeyboardInterrupt):
                self._tell()
            self._close_store()

    async def _label(self, post: Post, split: str, position: int) -> None:
        assert self._dialogue is not None
        assert self._progress is not None
        outcomes = await self._dialogue.run(post)
        assert self._replay is not None
        model = self.teacher.name
        self._rows += [settled_row(outcome, split, position, model) for outcome in outcomes]
        self._conclusions += [found for outcome in outcomes if (found := self._replay.conclusion(outcome, model))]
        if len(self._rows) >= _SETTLE_AT_ONCE:
            self._write_rows(self._dialogue)
        self._progress.settled(sum(outcome.record is not None for outcome in outcomes), len(outcomes))

    def _write_rows(self, dialogue: Dialogue) -> None:
        assert self._store is not None
        dialogue.writes.note(partial(self._store.settle, self._rows))
        dialogue.writes.note(partial(self._store.conclude, self._conclusions))
        self._rows, self._conclusions = [], []

    def _prepare(self, store: LabelStore, ranks: Ranks) -> Dialogue:
        """What has to be right before anything is asked."""
        prices = self._limits.prices
        if not self.other_prompts:
            refuse_other_prompts(store)
        requests, usd = spent(store, prices)
        limits = replace(self._limits, requests=requests, usd=usd)
        for one in self._rules.filters:
            if isinstance(one, Remembers):
                one.remember(store.all_accepted())
        if prices is not None:
            note_prices(store, self.teacher.name, prices)
        return Dialogue(self.teacher, store, self._rules, limits.share(ranks.size, ranks.rank))

    def _agree_on_cost(self, unanswered: tuple[int, int], error: InputError | None) -> None:
        """Asks whether to send the requests of all processes.

        Args:
            unanswered: what `Replay.unanswered` found in this process.
            error: what is wrong with this process.

        Raises:
            InputError: There is no consent, or something is wrong with a process.
        """
        assert self._ranks is not None
        counts = self._ranks.gather(unanswered)
        if error is None and self._store is not None and self._ranks.rank == 0 and costs(self.teacher):
            questions, characters = (sum(column) for column in zip(*counts, strict=True))
            seen = experience(self._store, self.teacher.name)
            try:
                ask_consent(estimate(questions, characters, seen, self._limits.prices), self.yes)
            except InputError as refused:
                error = refused
        self._ranks.agree(error)

    def _end_loop(self) -> None:
        try:
            if self._loop is not None:
                loop, self._loop = self._loop, None
                loop.close(self._last)
        finally:
            if self._progress is not None:
                self._progress.close()
            self._progress = self._dialogue = self._replay = None

    async def _last(self) -> None:
        """What is left to do in the event loop when no dialogue is under way any more."""
        assert self._dialogue is not None
        try:
            self._rows += self._replayed
            self._replayed = []
            self._write_rows(self._dialogue)
            await self._dialogue.drain(DRAIN_SECONDS)
        finally:
            if isinstance(self.teacher, Closable):
                await self.teacher.close()

    def _meet(self, error: Exception | None) -> None:
        """Waits for the other processes, once, and brings their stores into that of rank 0.

        Raises:
            Exception: `error`, or what another process met.
        """
        ranks, self._ranks = self._ranks, None
        if ranks is None or self._store is None:
            return
        if ranks.rank > 0:
            self._close_store()
        try:
            ranks.agree(error)
        finally:
            if self._store is not None:
                ranks.merge(self._store)

    def _tell(self, counts: dict[str, SplitCounts] | None = None) -> None:
        """Shows what was asked, what came of it and what it cost."""
        assert self._store is not None
        print_reconciliation(reconcile(self._store, self._limits.prices, counts), Console())

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.close()
        self._store = None


class _CloseOnException(Callback):
    """Closes the stage on an error or on Ctrl-C, wherever in the run it happens."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the stage; the exception goes on."""
        assert isinstance(pl_module, TeacherStage)
        if not isinstance(exception, KeyboardInterrupt):
            pl_module.close(exception)
            return
        pl_module.stop()
        print(
            f"stopping: replies under way are awaited for up to {DRAIN_SECONDS:.0f} s; Ctrl-C again stops now",
            file=sys.stderr,
        )

        def abandon(number: int, frame: FrameType | None) -> None:
            # The wait ends in its own way: an exception here could come between any two lines. A third one may.
            pl_module.stop(now=True)
            signal.signal(signal.SIGINT, signal.default_int_handler)

        # Lightning ignores Ctrl-C from the first one on; whoever gives a second one does not want to wait.
        ignored = signal.signal(signal.SIGINT, abandon)
        try:
            pl_module.close(exception)
        finally:
            signal.signal(signal.SIGINT, ignored)
