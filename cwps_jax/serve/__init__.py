"""The use of stored tasks: predictions for new images, accuracy on other data, exports for other programs."""

from cwps_jax.serve.answers import Evaluation, Predictions, evaluate, predict
from cwps_jax.serve.export import export
from cwps_jax.serve.export_pool import pack_pool, unpack_pool
from cwps_jax.serve.export_program import exported_program
from cwps_jax.serve.hub import from_hub, push_to_hub
from cwps_jax.serve.images import given_images
from cwps_jax.serve.learned_with import LearnedWith, learned_with
from cwps_jax.serve.shared_folder import save_pretrained
from cwps_jax.serve.task_bank import TaskBank
from cwps_jax.serve.trainable import print_trainable_parameters

__all__ = [
    "Evaluation",
    "LearnedWith",
    "Predictions",
    "TaskBank",
    "evaluate",
    "export",
    "exported_program",
    "from_hub",
    "given_images",
    "learned_with",
    "pack_pool",
    "predict",
    "print_trainable_parameters",
    "push_to_hub",
    "save_pretrained",
    "unpack_pool",
]
