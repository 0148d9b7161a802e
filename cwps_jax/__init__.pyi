from . import methods
from .config import RunConfig, default_config
from .core.budgets import harden, params_ratio, steer
from .core.channels import Layer, Layout, layout_from_axes
from .core.foreign import layout_from_shapes
from .core.masks import gates, init_scores, sparsity, temperature
from .core.mixing import mix
from .core.patterns import PRIVATE
from .core.trees import flatten, unflatten
from .data.task import TaskData
from .errors import CwpsError
from .from_python import learn_tasks
from .inputs import Inputs
from .learn import LearnedTask, composite_parent, learn_task, make_trainer
from .models import BACKBONES, create_model, list_models
from .models.pretrained import load_backbone, save_backbone
from .modules import ChannelShared, channel_layout, channel_rule
from .profiling import Profiler
from .search.composite import Search, Source
from .serve import (
    Evaluation,
    Predictions,
    TaskBank,
    evaluate,
    export,
    exported_program,
    from_hub,
    pack_pool,
    predict,
    print_trainable_parameters,
    push_to_hub,
    save_pretrained,
    unpack_pool,
)
from .settings import TrainConfig
from .store.pool import Pool
from .train.objectives import accuracy, cross_entropy, whole_split
from .train.records import Progress
from .train.trainer import Trainer
from .version import __version__

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
    "RunConfig",
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
    "create_model",
    "cross_entropy",
    "default_config",
    "evaluate",
    "export",
    "exported_program",
    "flatten",
    "from_hub",
    "gates",
    "harden",
    "init_scores",
    "layout_from_axes",
    "layout_from_shapes",
    "learn_task",
    "learn_tasks",
    "list_models",
    "load_backbone",
    "make_trainer",
    "methods",
    "mix",
    "pack_pool",
    "params_ratio",
    "predict",
    "print_trainable_parameters",
    "push_to_hub",
    "save_backbone",
    "save_pretrained",
    "sparsity",
    "steer",
    "temperature",
    "unflatten",
    "unpack_pool",
    "whole_split",
]
