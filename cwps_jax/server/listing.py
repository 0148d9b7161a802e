"""The server's list of tasks, with their versions, bytes, classes, and the owners of their channels."""

import asyncio

from cwps_jax.server import messages
from cwps_jax.server.metrics import PLACES
from cwps_jax.server.tasks import Bank, Tasks, taken


async def listed(tasks: Tasks) -> messages.Listing:
    """Returns all tasks of the pool, and loaded versions that are not a task's newest one."""
    resident = await asyncio.to_thread(resident_bytes, tasks.bank)
    names = dict.fromkeys((*tasks.bank.tasks, *tasks.pool.tasks))
    return {"tasks": [_listed(tasks, name) for name in names], "resident": resident}


def resident_bytes(bank: Bank) -> dict[str, int]:
    """Returns the bytes of a bank's tasks by their place: on the device, on the host, on the disk.

    It waits while the bank compiles or reads a task, so the thread that answers requests must not call it.
    """
    resident = bank.resident
    return {place: resident[place] for place in PLACES}


def _listed(tasks: Tasks, name: str) -> messages.Listed:
    loaded, known = name in tasks.bank.tasks, tasks.known.get(name)
    pool = tasks.bank.served(name).pool if loaded else tasks.pool
    version = tasks.bank.served(name).version if loaded else pool.version(name)
    accuracy = version.record.get("accuracy_when_learned")
    is_accuracy = version.record.get("metric", "accuracy") == "accuracy"
    return {
        "task": name,
        "version": version.name,
        "loaded": loaded,
        "takes": taken(known) if known else "",
        "why": tasks.silent.get(name, ""),
        "bytes": version.bytes,
        "method": version.method,
        "classes": list(known.class_names) if known else [],
        "accuracy": float(accuracy) if is_accuracy and isinstance(accuracy, int | float) else None,
        "owners": pool.relation(version.name) if pool.shares_channels(version.name) else {},
    }
