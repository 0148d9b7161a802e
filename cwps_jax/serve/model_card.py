"""The model card of a pool: a README.md that describes each task and its use, from the task's record."""

import html
import json
import re
from collections.abc import Sequence
from typing import Any

from cwps_jax.provenance import KEY
from cwps_jax.store.pool import Pool

SHOWN = 20  # the most names of classes that are shown
TITLES = ("task", "metric on its test set", "keeps", "bytes", "method", "classes")


def model_card(pool: Pool) -> str:
    """Returns the text of a pool's model card, in Markdown with the header that the Hugging Face hub reads.

    It contains only facts from the pool's records. A licence and the purpose of the tasks are not in any
    record, and the pool's owner adds them.

    Args:
        pool: the stored models.
    """
    backbone = pool.index.backbone or "a model of its own"
    example = json.dumps(pool.tasks[0] if pool.tasks else "a task", ensure_ascii=False)
    model = "" if pool.index.backbone else ", model=model"
    lines = [
        "---",
        "library_name: cwps_jax",
        "tags:",
        "- jax",
        "- flax",
        "- channel-wise-parameter-sharing",
        "---",
        "",
        f"# {len(pool)} task{'' if len(pool) == 1 else 's'} on {_escaped(backbone)}",
        "",
        "One pre-trained model, and for each task only what is its own. The other channels of a task's",
        "network are those of the pre-trained model and of the other tasks. The metric was measured when the",
        "task was learned, and `keeps` is the stored share of the backbone's parameters.",
        "",
        *_table(TITLES, [_row(pool, task) for task in pool.tasks]),
        "",
        "```python",
        "import cwps_jax as cwps",
        "",
        'pool = cwps.Pool.open("this folder")',
        f"predictions = cwps.predict(pool, {example}, images{model})",
        f"variables = pool.effective({example})  # of the plain network",
        "```",
        "",
        "## What each task was learned with",
        "",
        *(line for task in pool.tasks for line in _learned_with(pool, task)),
        "",
        "## The pre-trained model",
        "",
        *(_item(key, value) for key, value in sorted(pool.index.pretrained_record.items())),
        _item("SHA-256 of its files", pool.index.pretrained_sha256),
    ]
    return "\n".join(lines) + "\n"


def _row(pool: Pool, task: str) -> tuple[str, ...]:
    version, count = pool.version(task), pool.count(task)
    reached = version.record.get("accuracy_when_learned")
    metric = version.record.get("metric", "accuracy")
    named = "" if metric == "accuracy" else f" {metric}"
    told = f"{reached:.3f}{named}" if isinstance(reached, int | float) else "not recorded"
    classes = version.record.get("classes")
    return task, told, f"{count.ratio:.1%}", f"{version.bytes:,}", version.method, str(classes or "")


def _learned_with(pool: Pool, task: str) -> list[str]:
    told = pool.version(task).record.get(KEY)
    if told is None:
        return [f"- **{_escaped(task)}**: not recorded"]
    names, versions = told["class_names"] or (), told["versions"]
    classes = ", ".join(map(str, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" * (len(names) > SHOWN))
    config = told["config"]
    settings = {key: config[key] for key in ("epochs", "batch_size", "learning_rate", "seed")}
    return [
        f"- **{_escaped(task)}**",
        *(f"  {_item('classes', classes)}" for _ in range(bool(names))),
        f"  {_item('input', told['input'])}",
        f"  {_item('preparation', told['preparation'])}",
        f"  {_item('settings', settings)}",
        f"  {_item('SHA-256 of its data', told['fingerprints'])}",
        f"  {_item('versions', {key: versions[key] for key in ('cwps_jax', 'jax', 'flax')})}",
    ]


def _item(key: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"- {_escaped(key)}: {_escaped(text)}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = (titles, ["---"] * len(titles), *(map(_escaped, row) for row in rows))
    return [f"| {' | '.join(line)} |" for line in lines]


def _escaped(text: str) -> str:
    """Returns a text on one line, without Markdown and HTML, since the owners of tasks choose their names."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
