"""Channel-wise parameter sharing in JAX and Flax.

>>> import cwps_jax as cwps
"""

from cwps_jax import methods
from cwps_jax.core.budgets import harden, params_ratio, steer
from cwps_jax.core.channels import Layer, Layout, layout_from_axes
from cwps_jax.core.foreign import layout_from_shapes
from cwps_jax.core.masks import gates, init_scores, sparsity, temperature
from cwps_jax.core.mixing import mix
from cwps_jax.core.patterns import PRIVATE
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.data.task import TaskData
from cwps_jax.errors import CwpsError
from cwps_jax.inputs import Inputs
from cwps_jax.learn import LearnedTask, composite_parent, learn_task, make_trainer
from cwps_jax.models import BACKBONES
from cwps_jax.models.pretrained import load_backbone, save_backbone
from cwps_jax.modules import ChannelShared, channel_layout, channel_rule
from cwps_jax.profiling import Profiler
from cwps_jax.search.composite import Search, Source
from cwps_jax.serve import (
    Evaluation,
    Predictions,
    TaskBank,
    evaluate,
    export,
    exported_program,
    pack_pool,
    predict,
    unpack_pool,
)
from cwps_jax.settings import TrainConfig
from cwps_jax.store.pool import Pool
from cwps_jax.train.objectives import accuracy, cross_entropy, whole_split
from cwps_jax.train.records import Progress
from cwps_jax.train.trainer import Trainer
from cwps_jax.version import __version__

__all__ = [
    "BACKBONES",
    "PRIVATE",
    "ChannelShared",
    "CwpsError",
    "Evaluation",
    "Inputs",
    "Layer",
    "Layout",
    "LearnedTask",
    "Pool",
    "Predictions",
    "Profiler",
    "Progress",
    "Search",
    "Source",
    "TaskBank",
    "TaskData",
    "TrainConfig",
    "Trainer",
    "__version__",
    "accuracy",
    "channel_layout",
    "channel_rule",
    "composite_parent",
    "cross_entropy",
    "evaluate",
    "export",
    "exported_program",
    "flatten",
    "gates",
    "harden",
    "init_scores",
    "layout_from_axes",
    "layout_from_shapes",
    "learn_task",
    "load_backbone",
    "make_trainer",
    "methods",
    "mix",
    "pack_pool",
    "params_ratio",
    "predict",
    "save_backbone",
    "sparsity",
    "steer",
    "temperature",
    "unflatten",
    "unpack_pool",
    "whole_split",
]
