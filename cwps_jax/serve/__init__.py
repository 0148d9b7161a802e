"""A stored task at work: predictions for new images, its accuracy on other data, its weights for others."""

from cwps_jax.serve.answers import Evaluation, Predictions, evaluate, predict
from cwps_jax.serve.export import export
from cwps_jax.serve.export_pool import pack_pool, unpack_pool
from cwps_jax.serve.export_program import exported_program
from cwps_jax.serve.images import given_images
from cwps_jax.serve.learned_with import LearnedWith, learned_with
from cwps_jax.serve.task_bank import TaskBank

__all__ = [
    "Evaluation",
    "LearnedWith",
    "Predictions",
    "TaskBank",
    "evaluate",
    "export",
    "exported_program",
    "given_images",
    "learned_with",
    "pack_pool",
    "predict",
    "unpack_pool",
]
