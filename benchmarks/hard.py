"""The hard stage's two forms against a plain fine-tuning step: time, FLOPs, memory and optimizer state.

    python benchmarks/hard.py --out benchmarks/results/hard_cpu.json

"hard" is the compact form, whose parameters are the open channels alone; "dense_hard" trains the whole child
and holds the closed channels, and is the reference. 30% of every layer's channels are open. Turns, FLOPs and
memory are as in step.py; optimizer bytes are those of the layers' channels, without norms and head.
"""

import functools

from step import BASELINE, KINDS, Make, run
from turn import Turn

FORMS: dict[str, Make] = {
    BASELINE: KINDS[BASELINE],
    "hard": functools.partial(Turn, "hard", hard_form="compact"),
    "dense_hard": functools.partial(Turn, "hard", hard_form="dense"),
}

if __name__ == "__main__":
    run("hard", FORMS, __doc__, {"size": 224, "batch": 16, "cost_batch": 32})
