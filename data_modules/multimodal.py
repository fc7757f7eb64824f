"""The shared data module: posts of any reader, with rationales and soft labels where they are given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset

from data_modules.batching import Counts, StepSampler, token_batches
from data_modules.collate import PostSet, QuestionSet, ResponseSet, TrainingPosts, TrainingSet
from data_modules.encoded import EncodedPosts, Ragged, encoder_key
from data_modules.packing import BatchLoader, PackedBatches, stand_alone
from data_modules.post_table import check_gold, has_aspects, ids_of, label_counts, label_numbers
from data_modules.rationales import iterate_rationales, read_rationales
from data_modules.readers import Converted, Reader
from data_modules.readers.row_log import OnBadRow, RowLog
from data_modules.row_user import RowUser
from data_modules.source import PostSource, is_many, tell
from mulcot.ablations import Part
from mulcot.ranges import Count, Natural
from mulcot.rows import Layout, RowCollator, TextRow
from mulcot.soft_labels import CachedView, SoftLabelCache, prompt_digest
from mulcot.types import (
    SPLITS,
    InputError,
    MissingInputError,
    Post,
    Rationale,
    RationaleRecord,
    Split,
    Task,
)

Item = TypeVar("Item")


class MultimodalDataModule(LightningDataModule):
    """Posts for every stage.

    Args:
        posts: reads the posts of each split.
        rationales: rationale files of the training split, of teacher and assistant alike.
        references: rationale files of the validation and test splits; metrics compare with them, training never does.
        soft_labels: a soft-label cache made by `mulcot predict --config soft_labels.yaml`; null trains on hard labels.
        posts_per_step: posts of an optimizer step, over all ranks and accumulated micro-batches.
        layout: how rows become tensors. `shared`: prompt and picture of a post are there once, and its rationales and
            its classification are branches behind them that do not see each other. `paired`: each is a sequence of its
            own. The numbers are the same; a model that cannot take `shared` gets `paired`, with a message.
        row_tokens: several posts are put in one sequence of so many tokens at most, which saves padding where the
            attention skips what posts do not see of each other (`flex_attention`); null gives each one of its own.
        length_pool: so many optimizer steps' posts are sorted by length together, so that those of a step are of about
            the same length and little is padded; 1 does not sort.
        rationales_per_post: at most so many of a post's rationales in one epoch.
        eval_batch_size: posts of a batch in evaluation and prediction at most.
        eval_max_tokens: tokens of such a batch at most, padding and the answers of all labels included; null for no
            limit. With hundreds of labels this is what keeps a batch in memory.
        max_tokens: limit of a micro-batch in tokens, padding included; null for none.
        limit: takes only the first so many posts of each split, for trying things out.
        num_workers: worker processes that decode pictures.
        picture_cache_mb: encoded training pictures kept in memory, in MiB for each worker process.
        on_bad_row: `error` stops at the first wrong row; `skip` leaves wrong rows out, lists them in `bad_rows.jsonl`
            of the stage and says at the end how many there were. To find pictures that are broken it decodes all of
            them before the first step, unless the data were converted.
        other_prompts: takes rationales that answer other prompts than those of this version of mulcot.
        leave_out: `image`, `text` or `aspect`: that part of every post is taken out, in training and evaluation alike
            (see `without`). Tokens of a conversion are then not used, and soft labels must have been made so too.
        seed: decides the order of posts and the draw of rationales.
    """

    predict_splits: tuple[Split, ...] = SPLITS

    def __init__(
        self,
        posts: Reader,
        rationales: list[Path] | None = None,
        references: list[Path] | None = None,
        soft_labels: Path | None = None,
        posts_per_step: Count = 16,
        layout: Layout = "shared",
        row_tokens: Count | None = None,
        length_pool: Count = 16,
        rationales_per_post: Count = 2,
        eval_batch_size: Count = 32,
        eval_max_tokens: Count | None = 65_536,
        max_tokens: Count | None = None,
        limit: Count | None = None,
        num_workers: Natural = 0,
        picture_cache_mb: Natural = 0,
        on_bad_row: OnBadRow = "error",
        other_prompts: bool = False,
        leave_out: Part | None = None,
        seed: Natural = 0,
    ) -> None:
        super().__init__()
        sizes = {"posts_per_step": posts_per_step, "length_pool": length_pool, "eval_batch_size": eval_batch_size}
        for name, value in {**sizes, "row_tokens": row_tokens}.items():
            if value is not None and value < 1:
                raise InputError(f"data.init_args.{name} is {value}; it must be 1 or more")
        self.reader = posts
        self.rationale_files = rationales or []
        self.reference_files = references or []
        self.soft_label_folder = soft_labels
        self.posts_per_step = posts_per_step
        self.layout: Layout = layout
        self.row_tokens = row_tokens
        self.length_pool = length_pool
        self.rationales_per_post = rationales_per_post
        self.eval_batch_size = eval_batch_size
        self.eval_max_tokens = eval_max_tokens
        self.max_tokens = max_tokens
        self.num_workers = num_workers
        self.picture_cache_mb = picture_cache_mb
        self.other_prompts = other_prompts
        self.leave_out = leave_out
        self.seed = seed
        self.log_of_rows = RowLog(on_bad_row, decode=on_bad_row == "skip")
        """What was left out so far."""
        self.source = PostSource(posts, self.log_of_rows, limit, leave_out)
        self._encoded: dict[tuple[Split, tuple[Task, ...]], EncodedPosts] = {}
        self._training: TrainingPosts | None = None
        self._seen = (0, 0)
        self.begins_epoch_anew = False  # set where the posts of a resumed fit, or its steps, are others

    def state_dict(self) -> dict[str, Any]:
        """Where in the training posts the fit is, for its checkpoint: the epoch, and how many of its steps are done."""
        trainer = self._trainer
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        is_over = batches >= trainer.num_training_batches  # and `current_epoch` may be the next one
        return {"epoch": trainer.current_epoch, "steps": 0 if is_over else batches // trainer.accumulate_grad_batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Has the training loader begin behind what was seen."""
        self._seen = (state_dict["epoch"], 0 if self.begins_epoch_anew else state_dict["steps"])

    def posts(self, split: Split) -> Sequence[Post]:
        """The posts of a split, read once."""
        return self.source.posts(split)

    def files(self) -> list[Path]:
        """Every file and folder that the batches depend on, for the manifest."""
        given = [*self.reader.files(), *self.rationale_files, *self.reference_files]
        return [*given, self.soft_label_folder] if self.soft_label_folder else given

    def train_label_counts(self) -> dict[str, int]:
        """How often each gold label stands in the training split."""
        counts = label_counts(self.posts("train"))
        return {label: counts[label] for label in sorted(name for name in counts if name is not None)}

    def has_aspects(self, split: Split) -> bool:
        """Whether posts of the split are judged towards an aspect."""
        return has_aspects(self.posts(split))

    def setup(self, stage: str) -> None:
        """Reads what the verb needs, so that a bad row stops the run before a model is loaded."""
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ("train",))
        for split in wanted:
            self.posts(cast(Split, split))
        for path in (*self.rationale_files, *self.reference_files):
            if not path.is_file():
                raise MissingInputError(
                    f"{path} is missing: `mulcot predict --config teacher.yaml` (teacher's rationales) or "
                    f"`mulcot predict --config augment.yaml` (assistant's) makes it"
                )

    def train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches of this rank, step by step."""
        trainer = self._trainer
        parts = trainer.world_size * trainer.accumulate_grad_batches
        view = self._soft_label_view() if self.soft_label_folder else None
        collator = self._collator("train", view, self.picture_cache_mb, beside=True)
        posts = self.training_posts()
        data = TrainingSet(posts, collator, self.rationales_per_post, self.max_tokens, parts, self.seed)
        sampler = StepSampler(
            data.costs,
            len(data),
            self.posts_per_step,
            trainer.accumulate_grad_batches,
            trainer.global_rank,
            trainer.world_size,
            self.seed,
            self.length_pool,
            self._seen,
        )
        return self._loader(data, sampler=sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """Questions on the validation split: classification alone, generation would cost more than the epoch."""
        return self._questions("val", ["classification"])

    def test_dataloader(self) -> DataLoader[Any]:
        """Questions on the test split: classification, and reasoning where the stage trains it."""
        return self._questions("test", ["classification", *(task for task in self._user.tasks if task == "reasoning")])

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """What the stage asks for: see `PredictKind`. Models see the training split alone."""
        kind = self._user.predict_kind
        if kind == "posts":
            return [self._posts_as_they_are(split) for split in self.predict_splits]
        if kind == "questions":
            return [self._questions("train", ["reasoning"], self._user.finished_posts())]
        return [self._responses(self.training_posts(), self._collator("train"))]

    def held_out_dataloader(self) -> DataLoader[Any]:
        """The validation posts as rows with their responses (references, gold labels), for losses on unseen posts."""
        posts, user = self.posts("val"), self._user
        references = self.references("val") if "reasoning" in user.tasks else {}
        given = [references.get(post_id) for post_id in ids_of(posts)]
        first = np.cumsum([0, *(record is not None for record in given)], dtype=np.int64)
        rationales = Ragged.of(user.encoder.response_ids(record.rationale.to_json()) for record in given if record)
        gold = [user.encoder.labels.index(post.label) if post.label in user.encoder.labels else -1 for post in posts]
        responses = TrainingPosts(self._encode("val", user.tasks), np.array(gold, dtype=np.int64), rationales, first)
        return self._responses(responses, self._collator("val", beside=True))

    def training_posts(self) -> TrainingPosts:
        """The training split tokenised, with the rationales of every given file.

        Raises:
            InputError: a post without gold label, or a rationale file that does not fit the posts.
        """
        if self._training is None:
            posts = self.posts("train")
            labels = self._user.encoder.labels
            check_gold(posts, labels)
            encoded = self._encode("train", self._user.tasks)
            self._training = TrainingPosts(encoded, label_numbers(posts, labels), *self._rationale_ids(posts))
        return self._training

    def known_rationales(self) -> dict[str, list[Rationale]]:
        """The training posts' rationales of every given file, by post id."""
        known = self.source.by_id("train")
        records = read_rationales(
            self.rationale_files, known, self._user.encoder.labels, self.log_of_rows, self.other_prompts
        )
        return {post_id: [record.rationale for record in given] for post_id, given in records.items()}

    def _rationale_ids(self, posts: Sequence[Post]) -> tuple[Ragged, Any]:
        """The token ids of all rationales post by post, and where those of each post begin."""
        first = np.zeros(len(posts) + 1, dtype=np.int64)
        if not self.rationale_files or "reasoning" not in self._user.tasks:
            return Ragged.of([]), first
        encoder = self._user.encoder
        known = self.source.by_id("train")
        position = {post_id: number for number, post_id in enumerate(ids_of(posts))}
        of_post: list[int] = []
        ids: list[np.ndarray[Any, np.dtype[np.int32]]] = []
        for record in iterate_rationales(
            self.rationale_files, known, encoder.labels, self.log_of_rows, self.other_prompts
        ):
            if record.post_id not in position:  # of a post beyond the limit
                continue
            of_post.append(position[record.post_id])
            ids.append(np.array(encoder.response_ids(record.rationale.to_json()), dtype=np.int32))
        order = np.argsort(np.array(of_post, dtype=np.int64), kind="stable")
        np.cumsum(np.bincount(np.array(of_post, dtype=np.int64), minlength=len(posts)), out=first[1:])
        return Ragged.of(ids[number] for number in order), first

    def _encode(self, split: Split, tasks: Sequence[Task]) -> EncodedPosts:
        """The posts of a split with their tokens: from the conversion where it made them for this model, else now."""
        key = (split, tuple(tasks))
        if key not in self._encoded:
            posts, encoder = self.posts(split), self._user.encoder
            folder = None if self.leave_out else self.reader.tokens(split, encoder_key(encoder))
            if folder is not None:
                self._encoded[key] = EncodedPosts.open(posts, encoder, folder, tasks)
            else:
                self._tell_of_tokens(split, len(posts))
                place_of = self.source.place_of(split)
                self._encoded[key] = EncodedPosts.encode(posts, encoder, tasks, place_of=place_of)
        return self._encoded[key]

    def _soft_label_view(self) -> Callable[[TextRow], CachedView]:
        cache = SoftLabelCache(cast(Path, self.soft_label_folder), self._user.soft_label_fingerprint)
        prompts: dict[tuple[str, Task], str] = {}  # a picture is read for it, so once in a process

        def view(row: TextRow) -> CachedView:
            key = (row.post.id, row.task)
            if key not in prompts:
                prompts[key] = prompt_digest(row)
            return cache.get(*key, row.response_ids, prompts[key])

        return view

    def _tell_of_tokens(self, split: Split, posts: int) -> None:
        """Says when tokens must be made at every start although a conversion could keep them."""
        if isinstance(self.reader, Converted) and self.reader.description.tokens:
            whose = "of another model, label set (or order), picture size or version of mulcot"
            if self.leave_out:
                whose = f"of posts with their {self.leave_out}"
            tell(f"{split}: the tokens in {self.reader.folder} are those {whose}; the posts are tokenised again")
        elif is_many(posts):
            once = f"`mulcot data convert --model {self._user.pretrained}` does it once"
            tell(f"{split}: tokenising {posts} posts, at every start; {once}")

    def _posts_as_they_are(self, split: Split) -> DataLoader[Any]:
        posts = self.posts(split)
        size = self.eval_batch_size
        batches = [range(at, min(at + size, len(posts))) for at in range(0, len(posts), size)]
        return self._loader(PostSet(self._mine(batches, empty=range(0)), posts))

    def _questions(self, split: Split, tasks: Sequence[Task], finished: Collection[str] = ()) -> DataLoader[Any]:
        """The posts of a split as questions, without batches all of whose posts are finished."""
        references = self.references(split) if "reasoning" in tasks else {}
        questions = QuestionSet([], self._encode(split, tasks), self._collator(split), tasks, references)
        return self._asked(questions, finished, ids_of(self.posts(split)) if finished else [])

    def questions_about(self, posts: Sequence[Post], tasks: Sequence[Task]) -> DataLoader[Any]:
        """Questions on posts that are given, such as altered ones of the test split.

        Args:
            posts: the posts; each rank gets its share of them, and a batch's `numbers` are their places here.
            tasks: as for `QuestionSet`.
        """
        encoded = EncodedPosts.encode(posts, self._user.encoder, tasks)
        return self._asked(QuestionSet([], encoded, self._collator("test"), tasks, {}))

    def _asked(
        self, questions: QuestionSet, finished: Collection[str] = (), ids: Sequence[str] = ()
    ) -> DataLoader[Any]:
        batches = self._batches(*questions.sizes())
        if finished:  # batches stay what they are: in other company a row's last digits are others
            batches = [batch for batch in batches if not all(ids[number] in finished for number in batch)]
        questions.slices = self._mine(batches, empty=[])
        return self._loader(questions)

    def references(self, split: Split) -> dict[str, RationaleRecord]:
        """The first reference of every post of a split; files may hold those of validation and test posts together."""
        if not self.reference_files or split == "train":
            return {}
        others = [name for name in self.reader.splits() if name not in ("train", split)]
        labels = self._user.encoder.labels
        known = self.source.by_id(split, *others)
        records = read_rationales(self.reference_files, known, labels, self.log_of_rows, self.other_prompts)
        mine = set(ids_of(self.posts(split)))
        return {post_id: given[0] for post_id, given in records.items() if post_id in mine}

    def _responses(self, posts: TrainingPosts, collator: RowCollator) -> DataLoader[Any]:
        """Every post with all its responses, in batches of about the same length."""
        batches = self._batches(posts.tokens(), rows_per_item=1)
        return self._loader(ResponseSet(self._mine(batches, empty=[]), posts, collator))

    def _collator(
        self,
        split: Split,
        view: Callable[[TextRow], CachedView] | None = None,
        picture_cache_mb: int = 0,
        *,
        beside: bool = False,
    ) -> RowCollator:
        """Makes batches of a split's rows in the form that the stage's model takes.

        Args:
            split: the split.
            view: see `RowCollator`.
            picture_cache_mb: see `RowCollator`.
            beside: whether the assistant beside the student reads them, too.
        """
        user = self._user
        mine, theirs = user.row_forms(self.layout, self.row_tokens)
        assistant = user.assistant_encoder if beside else None
        place_of = self.source.place_of(split)
        return RowCollator(user.encoder, view, picture_cache_mb, place_of, assistant, mine, theirs)

    def _batches(self, lengths: Counts, rows_per_item: int) -> list[list[int]]:
        """Batches of evaluation or prediction, enough of them that every rank gets one as long as there are items."""
        share = -(-len(lengths) // self._trainer.world_size)
        return token_batches(lengths, rows_per_item, min(self.eval_batch_size, max(1, share)), self.eval_max_tokens)

    def _mine(self, batches: Sequence[Item], empty: Item) -> list[Item]:
        """This rank's share of batches: a stride, so that every batch is on exactly one rank.

        Lightning would leave a rank without a batch out of the epoch, and the others would wait for it for ever: such a
        rank gets an empty one.
        """
        trainer = self._trainer
        return list(batches[trainer.global_rank :: trainer.world_size]) or [empty]

    def _loader(self, data: Dataset[Any], **kwargs: Any) -> DataLoader[Any]:
        return BatchLoader(
            PackedBatches(data),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=stand_alone,
            generator=torch.Generator(),  # whenever it begins it draws a seed, else from dropout's generator
            **kwargs,
        )

    @property
    def _trainer(self) -> Trainer:
        if self.trainer is None:
            raise RuntimeError("the data module must be attached to a Trainer before batches are asked for")
        return self.trainer

    @property
    def _user(self) -> RowUser:
        return cast(RowUser, self._trainer.lightning_module)
