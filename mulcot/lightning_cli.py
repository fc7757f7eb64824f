"""`mulcot fit|validate|test|predict`: LightningCLI with our rules for configs, resuming and what a stage leaves."""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

import jsonargparse
import torch
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentError
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from omegaconf import OmegaConf
from transformers.utils import logging as transformers_logging

from data_modules import readers as _readers  # noqa: F401 (registers the readers' short class names)
from data_modules.multimodal import MultimodalDataModule
from mulcot import teachers as _teachers  # noqa: F401 (registers the teachers' short class names)
from mulcot.callbacks import BestEpoch, DistillationLoss, ProgressFile
from mulcot.checkpoints import DurableCheckpointIO
from mulcot.config_errors import explain_config_error
from mulcot.config_files import find_config
from mulcot.files import write_atomic
from mulcot.manifests import (
    MANIFEST_NAME,
    command_key,
    input_digests,
    make_manifest,
    output_digests,
    read_manifest,
    write_manifest,
)
from mulcot.models import MODEL_FOLDER, find_model, load_trained
from mulcot.types import InputError, MissingInputError
from stages import TeacherStage
from stages.base import ModelStage

_LOG = logging.getLogger(__name__)

# In this mode, and with this setting, `${...}` follows overrides on the command line and in a second --config.
PARSER: Final = {"parser_mode": "omegaconf+", "exit_on_error": False}
KEPT_BY_FRESH: Final = {"log.txt", "command.key"}
KEPT_STORES: Final = "labels."
"""How the files of the label store begin. They stay: what a teacher was paid for is never thrown away, and the lock of
another process is not to be taken from it."""
BEST: Final = "best.ckpt"
LAST: Final = "last.ckpt"
BAD_ROWS: Final = "bad_rows.jsonl"
"""The wrong rows that a stage left out."""
OUTPUTS: Final = {MODEL_FOLDER, "cache", "metrics.json"}
"""What later stages read of a stage, beside its JSON Lines."""


class NamedConfigFile(ActionConfigFile):
    """`--config`: finds bare names among the installed configs, and overlays `losses` entry by entry.

    A later file replaces a named loss whole, `null` removes it, the other losses stay. A source of posts is replaced
    whole too: the parser would keep those arguments of the earlier one that the new class happens to have.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Applies one config file on top of what was parsed before it."""
        before = dict(cfg.get("losses") or {})
        path = find_config(str(values))
        posts = OmegaConf.select(OmegaConf.load(path), "data.init_args.posts.class_path")
        if posts is not None and cfg.get("data.init_args.posts") is not None:
            cfg["data.init_args.posts"] = None
        super().__call__(parser, cfg, str(path), option_string)
        if "losses" in cfg:
            cfg["losses"] = {**before, **(cfg.get("losses") or {})}


class StageConfigFile(SaveConfigCallback):
    """Keeps the resolved configuration as `config-<verb>.yaml`: `predict` never overwrites the file of `fit`."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the file into the stage's directory."""
        verb = {"fit": "fit", "validate": "validate", "test": "test", "predict": "predict"}[stage]
        text = self.parser.dump(self.config, skip_none=False)
        write_atomic(Path(self.config.stage_dir) / f"config-{verb}.yaml", text)


class MulcotCLI(LightningCLI):
    """One stage from its YAML.

    Args:
        args: the command line without the program's name.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.argv = list(args)
        self.started = datetime.now(UTC)
        jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        super().__init__(
            datamodule_class=MultimodalDataModule,
            subclass_mode_data=True,
            save_config_callback=StageConfigFile,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False},
            parser_kwargs=dict.fromkeys(self.subcommands(), PARSER) | PARSER,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=self.argv,
        )

    # -- parsing ----------------------------------------------------------------------------------------------------

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """As in the base class, with our way of finding config files."""
        parser = LightningArgumentParser(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=NamedConfigFile,
            help="A config file; a bare name is looked up in ., ./conf and "
            "among the installed configs. May be given several times; later ones win.",
        )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses; a mistake becomes one line that names file and key."""
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(explain_config_error(error, args, parser)) from error

    def _parse_ckpt_path(self) -> None:
        """Does nothing: hyper-parameters stored in a checkpoint must not override YAML and flags without a word."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The arguments that every stage has beside its model and data."""
        parser.add_argument("--run_dir", type=str, default="runs/demo", help="The run that the stage belongs to.")
        parser.add_argument("--stage", type=str, default="stage", help="The stage's name within the run.")
        parser.add_argument("--stage_dir", type=Path, help="Where the stage keeps what it makes.")
        parser.add_argument("--data_root", type=str, default=".", help="Where the data set lies, for configs to use.")
        parser.add_argument("--fresh", action="store_true", help="Starts anew, removing what the stage made before.")
        parser.add_argument("--yes", action=ActionYesNo, nargs="?", help="Sends requests that cost money unasked.")
        parser.add_argument("--test_after_fit", type=bool, default=True, help="Evaluates the best epoch after fit.")
        parser.add_argument(
            "--losses", type=dict[str, DistillationLoss | None], default={}, help="The loss terms by name."
        )
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    # -- instantiation ----------------------------------------------------------------------------------------------

    @property
    def stage_dir(self) -> Path:
        """Where this stage keeps what it makes."""
        return Path(self._get(self.config, "stage_dir"))

    def before_instantiate_classes(self) -> None:
        """Refuses to run over a finished stage, before anything is loaded."""
        self.key = command_key(self.argv)
        if self.subcommand not in ("fit", "predict"):
            return
        if _is_first_process():
            if self._get(self.config, "fresh"):
                _empty(self.stage_dir)
            elif read_manifest(self.stage_dir) is not None:
                raise InputError(f"{self.stage_dir} is finished: give --fresh to start it anew, or another --stage")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds what no overlay may drop: loss terms, checkpoints, progress, durable saving."""
        config = cast(dict[str, Any], self._get(self.config_init, "trainer"))
        callbacks: list[Any] = [ProgressFile(self.stage_dir)]
        for name, term in (self._get(self.config_init, "losses") or {}).items():
            if term is not None:
                term.name = name
                callbacks.append(term)
        if self.subcommand == "fit":
            callbacks.append(
                BestEpoch(
                    dirpath=self.stage_dir / "checkpoints",
                    filename=BEST.removesuffix(".ckpt"),
                    monitor="val/selection",
                    mode="max",
                    save_last=True,
                    enable_version_counter=False,
                )
            )
            if config.get("logger") is not False:
                callbacks.append(LearningRateMonitor(logging_interval="step"))
        plugins = config.get("plugins") or []
        config["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), DurableCheckpointIO()]
        return self._instantiate_trainer({**config, **kwargs}, callbacks)

    # -- what happens around a verb ---------------------------------------------------------------------------------

    def before_fit(self) -> None:
        """Resumes an unfinished stage of the same configuration."""
        if isinstance(self.model, TeacherStage):
            raise InputError("the teacher is not trained: label posts with `mulcot predict --config teacher.yaml`")
        last = self.stage_dir / "checkpoints" / LAST
        if last.is_file() and not self.config_init["fit"].get("ckpt_path"):
            origin = torch.load(last, map_location="cpu", weights_only=True, mmap=True).get("mulcot", {})
            if origin.get("command_key") != self.key:
                raise InputError(
                    f"{self.stage_dir} holds an unfinished fit of another configuration: give --fresh to start anew, "
                    f"or the configuration that it was begun with ({self.stage_dir / 'config-fit.yaml'})"
                )
            self.config_init["fit"]["ckpt_path"] = str(last)
        self.model.command_key = self.key
        self._begin()

    def after_fit(self) -> None:
        """Saves the best epoch as a Hugging Face folder, evaluates it, and declares the stage done."""
        if self.trainer.interrupted or self._get(self.config, "trainer.fast_dev_run"):
            return
        stage = cast(ModelStage, self.model)
        best = self._load_weights(stage, self.stage_dir / "checkpoints" / BEST)
        if self.trainer.is_global_zero:
            stage.export(self.stage_dir / MODEL_FOLDER)
        if self._get(self.config, "test_after_fit"):
            self.trainer.test(stage, datamodule=self.datamodule, verbose=False)
        parameters = list(stage.parameters())
        self._finish(
            {
                "val": best["mulcot"]["val_metrics"],
                "test": stage.test_metrics or None,
                "best_epoch": best["epoch"],
                "optimizer_steps": best["global_step"],
                "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
                "parameters": sum(p.numel() for p in parameters),
            }
        )

    def before_validate(self) -> None:
        """Evaluates the stage's best epoch unless a checkpoint was named."""
        self._evaluate_best()

    def before_test(self) -> None:
        """See `before_validate`."""
        self._evaluate_best()

    def after_test(self) -> None:
        """Keeps the metrics beside those of the fit."""
        if self.trainer.is_global_zero:
            text = json.dumps(cast(ModelStage, self.model).test_metrics, indent=2)
            write_atomic(self.stage_dir / "metrics-test.json", text)

    def before_predict(self) -> None:
        """See `_begin`."""
        if isinstance(self.model, TeacherStage):
            self.model.yes = bool(self._get(self.config, "yes"))
        self._begin()

    def after_predict(self) -> None:
        """Declares the stage done."""
        self._finish({})

    def predict(self, **kwargs: Any) -> None:
        """Runs the stage's prediction; results go to files, nothing is kept in memory."""
        self.trainer.predict(**{**kwargs, "return_predictions": False})

    def _evaluate_best(self) -> None:
        """Loads the weights to evaluate ourselves: Lightning would want the callbacks of the fit for them."""
        if isinstance(self.model, TeacherStage):
            raise InputError("the teacher has no checkpoint to evaluate: its numbers are in the stage's metrics.json")
        given = self.config_init[str(self.subcommand)]
        path = Path(given.get("ckpt_path") or self.stage_dir / "checkpoints" / BEST)
        if not path.is_file():
            raise MissingInputError(f"{path} is missing: `mulcot fit` with the same --config makes it")
        given["ckpt_path"] = None
        stage = cast(ModelStage, self.model)
        stage.configure_model()
        self._load_weights(stage, path)

    def _load_weights(self, stage: ModelStage, path: Path) -> dict[str, Any]:
        checkpoint = cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
        assert stage.model is not None
        load_trained(stage.model, checkpoint["state_dict"])
        return checkpoint

    def _finish(self, metrics: dict[str, Any]) -> None:
        """Writes the metrics, then the manifest, whose presence means that the stage is done."""
        if not self.trainer.is_global_zero:
            return
        stage: Any = self.model
        seed = int(self._get(self.config, "seed_everything"))
        left_out = self._report_left_out()
        if isinstance(stage, ModelStage):
            if stage.outcome:
                metrics = stage.outcome | metrics
            else:
                common = {"kind": stage.kind, "title": stage.title, "seed": seed}
                metrics = common | {"train_label_counts": self.datamodule.train_label_counts()} | metrics
        else:
            metrics = json.loads((self.stage_dir / "metrics.json").read_text(encoding="utf-8"))
        write_atomic(
            self.stage_dir / "metrics.json", json.dumps(metrics | left_out, indent=2, ensure_ascii=False) + "\n"
        )
        made = [path for path in self.stage_dir.iterdir() if path.name in OUTPUTS or path.suffix == ".jsonl"]
        outputs = output_digests(self.stage_dir, sorted(made))
        write_manifest(
            self.stage_dir,
            make_manifest(self.argv, inputs=self.inputs, outputs=outputs, seed=seed, started=self.started),
        )

    def _report_left_out(self) -> dict[str, Any]:
        """Says what was left out of the data and lists wrong rows; the same for the stage's metrics."""
        left_out = self.datamodule.log_of_rows.left_out()
        if not left_out:
            return {}
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        where = ""
        if self.datamodule.log_of_rows.bad:
            self.datamodule.log_of_rows.write(self.stage_dir / BAD_ROWS)
            where = f" (wrong rows are listed in {self.stage_dir / BAD_ROWS})"
        _LOG.warning("left out of the data: %s%s", counts, where)
        return {"left_out": left_out}

    def _begin(self) -> None:
        """Notes what the stage reads, as it is before the start, and whose work lies in the folder from now on."""
        models = self.model.input_models() if isinstance(self.model, ModelStage) else []
        for model in models:
            find_model(model)  # a missing one is told of before posts are read
        paths = [*self.datamodule.files(), *(Path(model) for model in models)]
        self.inputs = input_digests(self.stage_dir, [path for path in paths if path.exists()])
        if _is_first_process():
            self.stage_dir.mkdir(parents=True, exist_ok=True)
            write_atomic(self.stage_dir / "command.key", self.key)


def run_stage(argv: Sequence[str]) -> int:
    """Runs one Lightning verb; the exit code says whether it came to its end."""
    # Tips for other products, a bar for each file that is read and advice that does not apply here would bury what a
    # reader looks for: resuming into a folder with checkpoints is meant, and so is decoding in the main process.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log")  # what is logged is of all ranks
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec")  # lightning 2.6.6 on the newest torch
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")  # peft on the newest transformers
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        MulcotCLI(argv)
    except SystemExit as left:
        if isinstance(left.__context__, KeyboardInterrupt):  # Lightning leaves with 1 after Ctrl-C
            raise KeyboardInterrupt from left
        raise
    return 0


def _is_first_process() -> bool:
    """Whether this process decides what happens to files; under DDP the others are launched with the same arguments."""
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("NODE_RANK", "0") == "0"


def _empty(folder: Path) -> None:
    """Removes what a stage made before, the manifest first: half a stage must not look finished."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in KEPT_BY_FRESH or path.name.startswith(KEPT_STORES):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
