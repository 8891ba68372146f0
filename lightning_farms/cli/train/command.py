"""The subcommands fit, validate, test and predict: LightningCLI with sizes from the data and starting weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_farms.callbacks.prediction_writer import PredictionWriter
from lightning_farms.cli._parser import types_in_words
from lightning_farms.cli._shell import fail, traceback_wanted
from lightning_farms.cli.train._checkpoint_io import write_whole
from lightning_farms.cli.train._classes import class_of, classes_are_named, network_sizes
from lightning_farms.cli.train._closing import check_before, close
from lightning_farms.cli.train._config_file import WholeConfig, what_is_wrong_with
from lightning_farms.cli.train._freezing import Frozen, freeze
from lightning_farms.cli.train._known_names import import_rooms, known_names
from lightning_farms.cli.train._named_checkpoint import check_named
from lightning_farms.cli.train._option_names import cause_in, option_keys, with_option_names
from lightning_farms.cli.train._origin import check_origin
from lightning_farms.cli.train._run_folder import claim_folders
from lightning_farms.cli.train.pretraining import Pretraining, pretrain, pretrained_path
from lightning_farms.common.checkpoints.safe_load import load_safely
from lightning_farms.common.image_size import plain_size
from lightning_farms.data.cfd_data_module import CFDDataModule
from lightning_farms.models.dpot.network import DPOT
from lightning_farms.models.dpot.weights.loading import load_weights
from lightning_farms.models.operator_module import OperatorModule

_USER_MISTAKES = (ValueError, OSError, ImportError, FloatingPointError, MisconfigurationException)
_ARITHMETIC = ("precision", "gradient_clip_val")  # settings of the Trainer that the pre-training shares
_DESCRIPTION = """Train and evaluate neural operators on 2D compressible flow, or a model and data named by their class
(--model ImageClassifier --data CIFARDataModule), with spectral analysis of every weight matrix during training (FARMS)
and learning rates per layer that follow from it."""


class FarmsParser(LightningArgumentParser):
    """Parser that lists this package's classes if a class is unknown, with a usage of one line."""

    def format_usage(self) -> str:
        """Return the usage without the options, which would take a hundred lines before each message."""
        return f"usage: {self.prog.replace(' [options]', '')} [--config FILE] [options]\n"

    def parse_path(self, cfg_path: str | PathLike[str], *args: Any, **options: Any) -> Namespace:  # noqa: ANN401
        """Look at a configuration file before it is parsed."""
        if wrong := what_is_wrong_with(Path(cfg_path)):
            self.error(wrong)
        parsed: Namespace = super().parse_path(cfg_path, *args, **options)
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with a message and exit status 2."""
        super().error("\n".join(filter(None, (types_in_words(message), known_names(message)))), ex)


class FarmsCLI(LightningCLI):
    """LightningCLI that takes the network's sizes from the data, and loads or pre-trains the starting weights.

    Under a strategy whose processes Lightning starts itself (DDP on one node), the first process pre-trains before it
    starts the others, which then find the weights in the cache. Under an external launcher (torchrun, SLURM) all
    processes start at once; in that case, first pre-train in a run with one process, or give a checkpoint.
    """

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        try:
            super().__init__(*args, **options)
        except _USER_MISTAKES as error:
            if traceback_wanted() or isinstance(error, BrokenPipeError):
                raise
            fail(error, with_option_names(error, self._keys(), self._built()))

    def _keys(self) -> dict[type, str]:
        config = self.config.get(str(self.subcommand)) if hasattr(self, "subcommand") else None
        named = self.subclass_mode_model
        plain = {} if named else {OperatorModule: "model", CFDDataModule: "data"}
        return option_keys(config, {**plain, Pretraining: "pretrain"})

    def _built(self) -> tuple[object, ...] | None:
        if not hasattr(self, "datamodule"):
            return None
        callbacks = self.trainer.callbacks if hasattr(self, "trainer") else []  # type: ignore[attr-defined]
        return self.datamodule, self.model, *callbacks

    def instantiate_classes(self) -> None:
        """Build the model, data and callbacks; what they say is raised as it is, without the parser's words around."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            if (cause := cause_in(error, self._keys())) is not error:
                raise cause  # noqa: B904
            raise

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the group `pretrain`, and the option `freeze`."""
        parser.add_class_arguments(Pretraining, "pretrain")
        parser.add_argument(
            "--freeze",
            type=list[str],
            default=[],
            help="patterns of the parameters that `fit` leaves as they are, each as in --freeze+='network.blocks.*'",
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:  # noqa: ANN401
        """Build a trainer that writes checkpoints completely or not at all."""
        trainer = super().instantiate_trainer(**kwargs)
        write_whole(trainer)
        return trainer

    def _parse_ckpt_path(self) -> None:
        """Refuse files that are not Lightning checkpoints before Lightning takes the model's settings from them."""
        subcommand = self.config.get("subcommand")
        path = self.config[subcommand].get("ckpt_path") if subcommand else None
        if path is not None and Path(path).is_file():
            _check_lightning_checkpoint(Path(path))
        given = _model_settings(self.config.get(subcommand))
        super()._parse_ckpt_path()
        if given:
            taken = _model_settings(self.config[subcommand])
            _tell_overridden(given, taken, _model_settings(self._parser(subcommand).get_defaults()))

    def before_instantiate_classes(self) -> None:
        """Set the network's sizes (or its number of classes) to the data's, if it has such arguments.

        They are set in the configuration, not linked, so that the saved configuration and the checkpoint's
        hyperparameters hold them, and a network without them is left alone.
        """
        if self.subcommand == "predict":
            self.config.predict.return_predictions = False  # nobody would use them
        network = self._arguments("model").get("network")
        arguments = {} if network is None else network.get("init_args", {})
        data = class_of(self._get(self.config, "data").class_path) if self.subclass_mode_data else CFDDataModule
        sizes = network_sizes(data, self._arguments("data"), arguments)
        usual = signature(class_of(network.class_path)).parameters if arguments else {}
        for name in [name for name in sizes if name in arguments]:
            given, arguments[name] = arguments[name], sizes[name]
            if name in usual and plain_size(given) not in (sizes[name], usual[name].default):
                rank_zero_warn(
                    f"`model.network.{name}` is set to {sizes[name]}, not to {given}, as the network takes its sizes "
                    "from the data."
                )

    def before_fit(self) -> None:
        """Load the starting weights, or pre-train them, unless a training is resumed, and make the run's folder."""
        self._find_checkpoint()
        patterns = self._get(self.config_init, "freeze")
        freeze(self.model, patterns)
        self.trainer.callbacks.append(Frozen(patterns))  # type: ignore[attr-defined]
        if self._closes_with_a_test() and self.datamodule.path is not None:
            check_before(self.datamodule)
        self._start()
        claim_folders(self.trainer)

    def _start(self) -> None:
        """Load the starting weights, or pre-train and keep them, unless a training is resumed."""
        pretraining: Pretraining = self._get(self.config_init, "pretrain")
        if self._resumes() or (pretraining.checkpoint is None and pretraining.epochs == 0):
            return
        network = self._dpot()
        if pretraining.checkpoint is not None:
            self._load(network, pretraining.checkpoint)
            return
        if self.datamodule.path is not None:
            self.datamodule.setup("fit")  # report faults of the user's own file before minutes of pre-training
        settings = self._get(self.config_init, "trainer")
        arithmetic = {name: settings[name] for name in _ARITHMETIC if settings[name] is not None}
        path = pretrained_path(pretraining, network, self.datamodule, arithmetic)
        if settings["fast_dev_run"]:
            rank_zero_info("Leaving out the pre-training under fast_dev_run")
            return
        if path.exists():
            rank_zero_info(f"Starting from the pre-trained weights kept in {path} (delete the file to make them anew)")
        else:
            self._pretrain(pretraining, path)
        load_weights(network, path)

    def after_fit(self) -> None:
        """Report the best checkpoint's errors: on the test flows, unless those chose it."""
        if isinstance(self.model, OperatorModule) and isinstance(self.datamodule, CFDDataModule):
            close(self.trainer, self.model, self.datamodule, separate_test=self._closes_with_a_test())

    def _closes_with_a_test(self) -> bool:
        """Whether `fit` ends with a test, which needs test flows that do not choose the checkpoint."""
        ours = isinstance(self.model, OperatorModule) and isinstance(self.datamodule, CFDDataModule)
        data: Mapping[str, object] = self._arguments("data").as_dict() if ours else {}
        dry = self._get(self.config_init, "trainer")["fast_dev_run"]
        return not dry and bool(data.get("val_fraction") or data.get("val_path"))

    def before_validate(self) -> None:
        """Load the weights of `pretrain.checkpoint`, unless a Lightning checkpoint is given."""
        self._load_for_evaluation()

    def before_test(self) -> None:
        """Load the weights of `pretrain.checkpoint`, unless a Lightning checkpoint is given."""
        self._load_for_evaluation()

    def before_predict(self) -> None:
        """Load the weights of `pretrain.checkpoint`, unless a Lightning checkpoint is given; add a writer of flows."""
        self._load_for_evaluation()
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        writers = any(isinstance(callback, PredictionWriter) for callback in callbacks)
        if isinstance(self.datamodule, CFDDataModule) and not writers:
            callbacks.append(PredictionWriter())

    def _find_checkpoint(self) -> None:
        """Refuse `best`, and, except in `fit`, `last` if there is none."""
        settings = self.config_init[str(self.subcommand)]
        settings.ckpt_path = check_named(self.trainer, settings.ckpt_path, str(self.subcommand))

    def _load_for_evaluation(self) -> None:
        self._find_checkpoint()
        checkpoint = self._get(self.config_init, "pretrain").checkpoint
        if self._resumes():
            return
        if checkpoint is None:
            rank_zero_warn(
                f"`{self.subcommand}` uses the weights that the network was built with, as a rule random ones: give "
                "`--ckpt_path` (or, for a DPOT, `--pretrain.checkpoint`)."
            )
            return
        self._load(self._dpot(), checkpoint)

    def _load(self, network: DPOT, checkpoint: str) -> None:
        components = self._get(self.config_init, "pretrain").components
        check_origin(checkpoint, self.datamodule, str(self.subcommand))
        report = load_weights(network, checkpoint, components=components, adapt=True)
        rank_zero_info(f"Starting from pre-trained weights. {report}")

    def _arguments(self, key: str) -> Namespace:
        """The configured arguments of the model or the data, whether or not their class is named."""
        part: Namespace = self._get(self.config, key)
        return part.get("init_args", Namespace()) if "class_path" in part else part  # type: ignore[no-untyped-call]

    def _resumes(self) -> bool:
        """Whether the weights come from `--ckpt_path`, which is reported if others are given too."""
        path, other = self._get(self.config_init, "ckpt_path"), self._get(self.config_init, "pretrain").checkpoint
        if path is not None and other is not None:
            rank_zero_info(f"The weights are those of `--ckpt_path`, {path}; `--pretrain.checkpoint` is not used.")
        return path is not None

    def _dpot(self) -> DPOT:
        network = getattr(self.model, "network", None)
        if not isinstance(network, DPOT) or not isinstance(self.datamodule, CFDDataModule):
            raise ValueError(
                "Expected argument `model.network` to be a DPOT, and `data` a CFDDataModule, when `pretrain` is used, "
                f"but got {type(network).__name__} and {type(self.datamodule).__name__}. Leave "
                "`pretrain` out, or continue from a `--ckpt_path`."
            )
        return network

    def _pretrain(self, pretraining: Pretraining, path: Path) -> None:
        launcher = getattr(self.trainer.strategy, "cluster_environment", None)
        if self.trainer.world_size > 1 and launcher is not None and launcher.creates_processes_externally:
            raise MisconfigurationException(
                "Expected pre-trained weights to exist when an external launcher starts several processes, but there "
                f"is no {path}. Run once with one process, or give `--pretrain.checkpoint`."
            )
        rank_zero_info(f"Pre-training for {pretraining.epochs} epochs; the weights will be kept in {path}")
        settings = self._get(self.config_init, "trainer")
        trainer = Trainer(
            accelerator=settings["accelerator"],
            devices=1,
            **{name: settings[name] for name in _ARITHMETIC},
            enable_progress_bar=settings["enable_progress_bar"],
            max_epochs=pretraining.epochs,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        pretrain(pretraining, self._dpot(), self.datamodule, trainer, path)


def train(args: list[str] | None = None) -> None:
    """Run fit, validate, test or predict."""
    warnings.filterwarnings(
        "ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning
    )
    import_rooms()
    named = classes_are_named(args)
    FarmsCLI(
        LightningModule if named else OperatorModule,
        LightningDataModule if named else CFDDataModule,
        subclass_mode_model=named,
        subclass_mode_data=named,
        seed_everything_default=42,
        parser_class=FarmsParser,
        auto_configure_optimizers=False,
        save_config_callback=WholeConfig,
        save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
        parser_kwargs={"prog": "lightning-farms", "description": _DESCRIPTION},
        args=args,
    )


def _model_settings(config: Namespace | None) -> dict[str, Any]:
    """The plain settings of the model, if its class is not named; else none."""
    part = None if config is None else config.get("model")
    settings = vars(part) if isinstance(part, Namespace) and "class_path" not in part else {}
    return {name: value for name, value in settings.items() if not isinstance(value, Namespace)}


def _tell_overridden(given: dict[str, Any], taken: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Warn about settings that Lightning replaces by a checkpoint's."""
    for name, value in given.items():
        if value not in (taken.get(name, value), defaults.get(name)):
            rank_zero_warn(
                f"`model.{name}` is {taken[name]}, as in the training of the checkpoint, not {value}. To change it, "
                "begin a new training with the checkpoint's weights: give it as `--pretrain.checkpoint`, without "
                "`--ckpt_path`."
            )


def _check_lightning_checkpoint(path: Path) -> None:
    remedy = "A network's weights alone, such as a released DPOT's, are given as `--pretrain.checkpoint`."
    try:
        content = load_safely(path)  # in the same way as Lightning
    except ValueError as error:
        raise ValueError(
            f"Expected argument `ckpt_path` to be a Lightning checkpoint, but {path} cannot be read as one "
            f"({type(error.__cause__).__name__}): it is damaged, cut short or of another format. {remedy}"
        ) from error
    if not isinstance(content, Mapping) or not {"state_dict", "pytorch-lightning_version"} <= content.keys():
        raise ValueError(f"Expected argument `ckpt_path` to be a Lightning checkpoint, but {path} is none. {remedy}")
