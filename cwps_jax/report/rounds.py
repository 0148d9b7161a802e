"""The results of each round over the tasks, read from the versions that the pool holds."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cwps_jax.report.html_page import Table
from cwps_jax.store.pool import PRETRAINED, Pool

ROUND = "round"  # in a version's record; one without is of the first
HEADER = (
    *("round", "accuracy", "validation", "new", "kept", "bytes", "older"),
    *("own", "pre-trained", "others"),
)


def measure_rounds(pool: Pool, tasks: Sequence[str], rounds: int, draw: int) -> list[dict[str, Any]]:
    """Returns "rounds" of results.json: the tasks' versions after each round; none of a single round.

    Args:
        pool: the stored models; what its older versions were is known while they are there.
        tasks: that were learned in rounds.
        rounds: how many there were.
        draw: number of the run among several draws.
    """
    found = []
    for number in range(1, rounds + 1) if rounds > 1 else ():
        kept = {}
        for version in pool.index.versions:
            if version.task in tasks and version.record.get(ROUND, 1) <= number:
                kept[version.task] = version
        names = [one.name for one in kept.values()]
        older = [one for one in pool.needed(names) if one.task in kept and one.name not in names]
        for version in kept.values():
            record, count = version.record, pool.count(version.name)
            found.append(
                {
                    "round": number,
                    "task": version.task,
                    "draw": draw,
                    "version": version.version,
                    "accuracy_when_learned": record["accuracy_when_learned"],
                    "validation_accuracy": record["validation_accuracy"],
                    "params_ratio": count.ratio,
                    "byte_ratio": count.byte_ratio,
                    "bytes": version.bytes,
                    "older_bytes": sum(one.bytes for one in older if one.task == version.task),
                    "relation": pool.relation(version.name) if pool.shares_channels(version.name) else None,
                }
            )
    return found


def rounds_table(rounds: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a row of texts per round: means over tasks and draws, and the owners of channels.

    Args:
        rounds: "rounds" of results.json.
    """
    rows: list[tuple[str, ...]] = []
    for number in sorted({one["round"] for one in rounds}):
        own = [one for one in rounds if one["round"] == number]
        before = {(one["task"], one["draw"]): one["version"] for one in rounds if one["round"] == number - 1}
        new = sum(before.get((one["task"], one["draw"])) != one["version"] for one in own)
        mean = lambda key, own=own: statistics.mean(one[key] for one in own)
        known = [one for one in own if one["relation"]]
        share = lambda whom, known=known: (
            f"{statistics.mean(whom(one) for one in known):.0%}" if known else "-"
        )
        rows.append(
            (
                str(number),
                f"{100 * mean('accuracy_when_learned'):.1f}%",
                f"{100 * mean('validation_accuracy'):.1f}%",
                f"{new} of {len(own)}",
                f"{mean('params_ratio'):.3f}x",
                f"{mean('bytes'):,.0f}",
                f"{mean('older_bytes'):,.0f}",
                share(lambda one: one["relation"].get(one["task"], 0.0)),
                share(lambda one: one["relation"].get(PRETRAINED, 0.0)),
                share(lambda one: 1 - sum(one["relation"].get(it, 0.0) for it in (one["task"], PRETRAINED))),
            )
        )
    return HEADER, rows
