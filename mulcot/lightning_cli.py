"""`mulcot fit|validate|test|predict`: LightningCLI with our rules for configs, resuming and what a stage leaves."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar, cast

import jsonargparse
from jsonargparse import ActionYesNo, ArgumentError
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

from data_modules import readers as _readers  # noqa: F401 (registers the readers' short class names)
from data_modules.multimodal import MultimodalDataModule
from mulcot import full_disk
from mulcot import teachers as _teachers  # noqa: F401 (registers the teachers' short class names)
from mulcot.callbacks import (
    BestEpoch,
    DistillationLoss,
    HeldOutLosses,
    Inspection,
    OwnSignals,
    Probing,
    ProgressFile,
    RandomStates,
    StepCheckpoints,
)
from mulcot.checkpoints import DurableCheckpointIO, check_given
from mulcot.config_errors import check_unicode, explain_config_error, with_place
from mulcot.config_overlays import NamedConfigFile, with_nulls_kept, with_values_replaced
from mulcot.csv_files import set_aside
from mulcot.files import write_atomic
from mulcot.ground import FORMAT, check_allowed, ground_of
from mulcot.interruptions import Interruptions, same_command
from mulcot.launches import was_begun_before
from mulcot.launching import StageLauncher, check_processes, leave_used_store, take_launch
from mulcot.loaded_weights import load_evaluated, load_weights
from mulcot.manifests import command_key, input_digests, package_versions, recorded_name
from mulcot.models import MODEL_FOLDER, find_model, is_sharded
from mulcot.ranges import check_ranges, check_trainer
from mulcot.resuming import find_resumed, take_up
from mulcot.secrecy import check_settings
from mulcot.shown_text import first_line
from mulcot.stage_config import StageConfigFile
from mulcot.stage_folder import METRICS, StageFolder, check_stage_name
from mulcot.types import InputError
from stages import TeacherStage
from stages.base import TEST_PREDICTIONS, ModelStage

_LOG = logging.getLogger(__name__)
Made = TypeVar("Made")

# In this mode, and with this setting, `${...}` follows overrides on the command line and in a second --config.
PARSER: Final = {"parser_mode": "omegaconf+", "exit_on_error": False}
BAD_ROWS: Final = "bad_rows.jsonl"
"""The wrong rows that a stage left out."""


class MulcotCLI(LightningCLI):
    """One stage from its YAML.

    Args:
        args: the command line without the program's name.
        interruptions: tells of signals.
        resources: holds the stage's folder, or the one of a `fast_dev_run`, until the process is done with it.
    """

    def __init__(self, args: Sequence[str], interruptions: Interruptions, resources: ExitStack) -> None:
        self.argv = list(args)
        self.interruptions = interruptions
        self.resources = resources
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

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The given verb alone: the parsers of the others would be built for nothing."""
        return {verb: skipped for verb, skipped in super().subcommands().items() if verb == self.argv[0]}

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
        check_unicode(args)
        try:
            self.config = parser.parse_args(with_nulls_kept(with_values_replaced(args)))
        except (ArgumentError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(explain_config_error(error, args, parser)) from error
        try:
            check_trainer(self.config[str(self.config.subcommand)])
        except InputError as refusal:
            raise with_place(refusal, self.argv) from refusal

    def _parse_ckpt_path(self) -> None:
        """Looks at the name alone: hyper-parameters of a checkpoint must not override YAML and flags without a word."""
        check_given(self.config[str(self.config.subcommand)].get("ckpt_path"))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The arguments that every stage has beside its model and data."""
        parser.add_argument("--run_dir", type=str, default="runs/demo", help="The run that the stage belongs to.")
        parser.add_argument("--stage", type=str, default="stage", help="The stage's name within the run.")
        parser.add_argument("--stage_dir", type=Path, help="Where the stage keeps what it makes.")
        parser.add_argument("--data_root", type=str, default=".", help="Where the data set lies, for configs to use.")
        parser.add_argument("--fresh", action="store_true", help="Starts anew, removing what the stage made before.")
        parser.add_argument(
            "--allow_changed", type=str, help="Resumes although these have changed, such as data,seed; see README."
        )
        parser.add_argument("--yes", action=ActionYesNo, nargs="?", help="Sends requests that cost money unasked.")
        parser.add_argument("--test_after_fit", type=bool, default=True, help="Evaluates the best epoch after fit.")
        parser.add_argument(
            "--losses", type=dict[str, DistillationLoss | None], default={}, help="The loss terms by name."
        )
        parser.add_lightning_class_args(HeldOutLosses, "held_out")
        parser.add_lightning_class_args(Inspection, "inspection")
        parser.add_lightning_class_args(Probing, "probes")
        parser.add_lightning_class_args(StepCheckpoints, "checkpoints")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    # -- instantiation ----------------------------------------------------------------------------------------------

    @property
    def stage_dir(self) -> Path:
        """Where this stage keeps what it makes."""
        return Path(self._get(self.config, "stage_dir"))

    def before_instantiate_classes(self) -> None:
        """Finds the stage's folder; a `fast_dev_run` leaves nothing behind."""
        check_settings(self.config[str(self.subcommand)].as_dict())  # before a file holds them
        self.key = command_key(self.argv)
        check_stage_name(str(self._get(self.config, "stage")))
        self.allowed = check_allowed(self._get(self.config, "allow_changed"))
        if self._get(self.config, "trainer.fast_dev_run"):
            scratch = self.resources.enter_context(TemporaryDirectory(prefix="mulcot-"))
            given = self.config[str(self.subcommand)]
            given["stage_dir"] = given["model.init_args.stage_dir"] = Path(scratch)
        self.folder = StageFolder(self.stage_dir)
        self.fresh = bool(self._get(self.config, "fresh")) and not was_begun_before(self.stage_dir)
        anew = {"--fresh": self.fresh, "--ckpt_path": self._get(self.config, "ckpt_path")}
        self.interruptions.again = same_command(anew)
        self.resources.enter_context(full_disk.told_of(self.stage_dir, self.interruptions.again))

    def instantiate_classes(self) -> None:
        """As in the base class; what a constructor refuses leaves as one line, and so does a stage that is finished."""
        refusals: list[InputError] = []

        def construct(class_type: type[Made], *args: Any, **kwargs: Any) -> Made:
            try:
                check_ranges(class_type, kwargs)
                return class_type(*args, **kwargs)
            except InputError as refusal:
                refusals.append(refusal)  # jsonargparse would keep its text alone, in the midst of its own
                raise

        self.parser.add_instantiator(construct, object)
        try:
            super().instantiate_classes()
        except (ArgumentError, TypeError, ValueError, MisconfigurationException) as error:
            if refusals:  # the parser's own error spells every argument, a misplaced key too
                raise with_place(refusals[0], self.argv) from None
            if isinstance(error, MisconfigurationException):
                raise with_place(InputError(f"trainer: {first_line(error)}"), self.argv) from error
            explained = InputError(explain_config_error(error, self.argv, self.parser))
            raise with_place(explained, self.argv) from error
        check_processes(self.trainer)
        leave_used_store()
        if self.subcommand in ("fit", "predict") and not self.fresh:
            self.folder.refuse_finished(trains=self.subcommand == "fit", is_first=self.trainer.is_global_zero)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds what no overlay may drop: loss terms, inspection, checkpoints, progress, durable saving."""
        config = cast(dict[str, Any], self._get(self.config_init, "trainer"))
        callbacks: list[Any] = [OwnSignals(self.interruptions), ProgressFile(self.stage_dir)]
        if self.subcommand == "fit":
            callbacks.append(RandomStates())
        for name, term in (self._get(self.config_init, "losses") or {}).items():
            if term is not None:
                term.name = name
                callbacks.append(term)
        if self.subcommand == "fit":
            callbacks.append(
                BestEpoch(
                    dirpath=self.folder.best.parent,
                    filename=self.folder.best.stem,
                    monitor="val/selection",
                    mode="max",
                    save_on_train_epoch_end=False,  # but after validation, before the last step is saved
                    enable_version_counter=False,
                )
            )
            saving = self._get(self.config_init, "checkpoints")
            saving.path, saving.interruptions = self.folder.last, self.interruptions
            callbacks.append(saving)
            if config.get("logger") is not False:
                callbacks.append(LearningRateMonitor(logging_interval="step"))
            for name in ("inspection", "held_out"):
                watching = self._get(self.config_init, name)
                if watching.enabled:
                    callbacks.append(watching)
        probes = self._get(self.config_init, "probes")
        if self.subcommand in ("fit", "test") and probes.enabled:
            callbacks.append(probes)
        plugins = config.get("plugins") or []
        config["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), DurableCheckpointIO()]
        self.interruptions.requeues &= all(getattr(plugin, "auto_requeue", True) for plugin in config["plugins"])
        trainer = self._instantiate_trainer({**config, **kwargs}, callbacks)
        take_launch(trainer, self.interruptions)
        return trainer

    # -- what happens around a verb ---------------------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        """As in the base class; an error of this process ends those that it started."""
        try:
            super()._run_subcommand(subcommand)
        except BaseException:
            if isinstance(launcher := self.trainer.strategy.launcher, StageLauncher):
                launcher.end_others()
            raise

    def before_fit(self) -> None:
        """Resumes an unfinished stage of the same configuration."""
        if isinstance(self.model, TeacherStage):
            raise InputError("the teacher is not trained: label posts with `mulcot predict --config teacher.yaml`")
        self._hold()
        self.model.origin = {"format": FORMAT, "ground": self._ground(), "versions": package_versions()}
        named = self.config_init["fit"].get("ckpt_path")
        resumed = find_resumed(self.folder, named, self.model.origin["ground"], self.allowed, fresh=self.fresh)
        self._begin("fit" if resumed is None else f"step-{resumed.step}")
        if resumed is not None:
            self.config_init["fit"]["ckpt_path"] = str(resumed.path)
            take_up(resumed, self.trainer, cast(ModelStage, self.model), self.datamodule)

    def _ground(self) -> dict[str, dict[str, Any]]:
        """What this fit stands on."""
        stage = cast(ModelStage, self.model)
        config = self.config[str(self.subcommand)].as_dict()
        names = [recorded_name(self.stage_dir, Path(name)) for name in stage.input_models()]
        return ground_of(config, self.inputs, names, stage.encoder.fingerprint(), self.trainer.world_size)

    def after_fit(self) -> None:
        """Saves the best epoch as a Hugging Face folder, evaluates it, and declares the stage done."""
        if self.trainer.interrupted or self._get(self.config, "trainer.fast_dev_run"):
            return
        stage = cast(ModelStage, self.model)
        if stage.model is not None and is_sharded(stage.model):  # what follows takes whole weights
            stage.model = None
            stage.configure_model()
        best = load_weights(stage, self.folder.best)
        if self.trainer.is_global_zero:
            stage.export(self.stage_dir / MODEL_FOLDER)
        if self._get(self.config, "test_after_fit"):
            self.trainer.test(stage, datamodule=self.datamodule, verbose=False)
        sizes = [(weights.numel(), weights.requires_grad) for weights in stage.parameters()]
        found = {"val": best["mulcot"]["val_metrics"], "test": stage.test_metrics or None, "best_epoch": best["epoch"]}
        found["optimizer_steps"] = best["global_step"]
        found["trained_parameters"] = sum(size for size, is_trained in sizes if is_trained)
        self._finish({**found, "parameters": sum(size for size, _ in sizes)})

    def before_validate(self) -> None:
        """Evaluates the stage's best epoch unless a checkpoint was named."""
        self._evaluate_best()

    def before_test(self) -> None:
        """See `before_validate`; the fit's own predictions stay."""
        self._evaluate_best()
        cast(ModelStage, self.model).predictions_name = TEST_PREDICTIONS

    def after_test(self) -> None:
        """Keeps the metrics beside those of the fit."""
        metrics = cast(ModelStage, self.model).test_metrics
        if self.trainer.is_global_zero:
            write_atomic(self.stage_dir / "metrics-test.json", json.dumps(metrics, indent=2))

    def before_predict(self) -> None:
        """See `_hold`."""
        if not is_overridden("predict_step", self.model, LightningModule):
            raise InputError(
                f"{type(self.model).__name__} predicts nothing: `mulcot predict` takes teacher.yaml (labels), "
                "augment.yaml (rationales) or soft_labels.yaml (logits); `infer` and `test` ask a student"
            )
        if isinstance(self.model, TeacherStage):
            self.model.yes = bool(self._get(self.config, "yes"))
        self._hold()
        self._begin("predict")

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
        path, given["ckpt_path"] = given.get("ckpt_path") or self.folder.best, None
        config = self.config[str(self.subcommand)].as_dict()
        load_evaluated(cast(ModelStage, self.model), path, config, self.allowed)
        set_aside(self.trainer.loggers, str(self.subcommand))

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
            metrics = json.loads((self.stage_dir / METRICS).read_text(encoding="utf-8"))
        self.folder.finish(metrics | left_out, self.argv, self.inputs, seed, self.started)

    def _report_left_out(self) -> dict[str, Any]:
        """Says what was left out of the data and lists wrong rows; the same for the stage's metrics."""
        left_out = self.datamodule.log_of_rows.left_out()
        if not left_out:
            return {}
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        where = f" (wrong rows are listed in {self.stage_dir / BAD_ROWS})" if self._list_bad_rows() else ""
        _LOG.warning("left out of the data: %s%s", counts, where)
        return {"left_out": left_out}

    def _list_bad_rows(self) -> bool:
        """Writes the wrong rows that were met so far; whether there were any."""
        log = self.datamodule.log_of_rows
        if log.bad and self.trainer.is_global_zero:
            log.write(self.stage_dir / BAD_ROWS)
        return bool(log.bad)

    def _hold(self) -> None:
        """Reads what can be wrong, notes what the stage reads, and keeps others out of the stage's folder."""
        models = self.model.input_models() if isinstance(self.model, ModelStage) else []
        for model in models:
            find_model(model)  # a missing one is told of before posts are read
        try:
            self.datamodule.setup(str(self.subcommand))
        except InputError:
            self._list_bad_rows()  # when all rows are wrong, this is where to see why
            raise
        paths = [*self.datamodule.files(), *(Path(model) for model in models)]
        self.inputs = input_digests(self.stage_dir, [path for path in paths if path.exists()])
        if isinstance(self.model, ModelStage):
            self.model.inputs = self.inputs
        if self.trainer.is_global_zero:
            self.resources.enter_context(self.folder.held())

    def _begin(self, before: str) -> None:
        """Only now the stage's folder is touched, and what `CSVLogger` would delete there; see `set_aside`."""
        if self.trainer.is_global_zero:
            self.folder.begin(self.key, fresh=self.fresh)
        set_aside(self.trainer.loggers, before)
        self._list_bad_rows()
