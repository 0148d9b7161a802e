"""The data, compiled steps and pre-trained models that cells of a study share in one process."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from cwps_jax.config import RunConfig
from cwps_jax.data.cache import PixelCache
from cwps_jax.data.task import TaskData
from cwps_jax.prepare import Prepared, load_task, open_image_cache, prepare
from cwps_jax.pretraining import origin, pretrained_pool
from cwps_jax.store.lock import locked
from cwps_jax.train.evaluation import Predictor
from cwps_jax.train.records import Observe
from cwps_jax.train.trainer import Trainer

# Cells that agree on these, and on the size of their head, have the same model.
OF_THE_MODEL = (
    *("backbone", "dtype", "stochastic_depth", "remat"),
    *("head", "private", "image_size", "parallel"),
)

DAY = 86_400.0  # seconds that a process waits for another one's pre-training
MOST_RUNS = 100  # after which compiled steps are let go: each run may add some that no other uses


@dataclasses.dataclass(frozen=True)
class Bench:
    """The trainer and predictors of cells of the same model.

    Attributes:
        trainer: the trainer, with compiled steps for all of them.
        make_model: from a number of classes to the plain model, the same one each time.
        predictors: see `measure_pool`.
    """

    trainer: Trainer
    make_model: Callable[[int], nn.Module]
    predictors: dict[Any, Predictor]


def model_key(config: RunConfig) -> tuple[str, ...]:
    """Returns the settings on which the model of a cell depends, as texts that can be sorted."""
    return tuple(str(getattr(config, name)) for name in OF_THE_MODEL)


class Shared:
    """The shared parts of cells. Run those of one model one after the other: only its trainers are kept.

    Args:
        folder: folder of the pre-trained models, each as a pool without tasks.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self._model: tuple[str, ...] = ()
        self._runs = 0
        self._benches: dict[Any, Bench] = {}
        self._data: dict[Any, TaskData] = {}
        self._caches: dict[Any, PixelCache | None] = {}

    def load(self, config: RunConfig, task: str, cache: PixelCache | None = None) -> TaskData:
        """Returns a task's data as `load_task` does, loaded once.

        Args:
            config: of a run.
            task: its name.
            cache: not used; all runs share one.
        """
        images = config.for_task(task).images
        key = (images, config.backbone, task, config.seed)
        if key not in self._data:
            self._data[key] = load_task(config, task, self._open_cache(config))
        return self._data[key]

    def prepared(self, config: RunConfig) -> tuple[Prepared, Bench]:
        """Returns a run that can start, with the trainer of earlier runs of the same model.

        Raises:
            CwpsError: see `prepare`.
        """
        model = model_key(config)
        if model != self._model:
            self._model = model
            self._benches.clear()
        self._runs += 1
        if self._runs % MOST_RUNS == 0:
            self._benches.clear()
        own = prepare(config, None, None, load=self.load)
        # What a cell gives must not depend on the cells beside it: a head of another size starts otherwise,
        # and rooms that others chose round otherwise.
        bench = self._benches.setdefault(own.trainer.layout.head, Bench(own.trainer, own.make_model, {}))
        bench.trainer.network.begin_run()
        return dataclasses.replace(own, trainer=bench.trainer, make_model=bench.make_model), bench

    def pretrained(self, prepared: Prepared, observe: Observe) -> pathlib.Path:
        """Returns the folder of a pool of only a run's pre-trained model; it is made if it does not exist.

        Args:
            prepared: the run.
            observe: called once per epoch if the model is trained.
        """
        known = json.dumps([origin(prepared.config), model_key(prepared.config)], sort_keys=True)
        folder = self.folder / hashlib.sha256(known.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        # Another process of this study may need it, too, and waits for it.
        with locked(folder.with_suffix(".lock"), "this pre-trained model is being made", DAY):
            if not (folder / "index.json").exists():
                pretrained_pool(prepared, folder)(observe, None)
        return folder

    def _open_cache(self, config: RunConfig) -> PixelCache | None:
        key = (config.cache, config.cache_dir, config.cache_gigabytes)
        if key not in self._caches:
            self._caches[key] = open_image_cache(config)
        return self._caches[key]
