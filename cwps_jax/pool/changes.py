"""The verbs of a stored task's life: verify, remove, rename, compact, copy, merge, pack, unpack."""

import argparse
import dataclasses
from typing import Any

from cwps_jax.errors import CwpsError
from cwps_jax.pool.output import print_json, print_line
from cwps_jax.serve import pack_pool, unpack_pool
from cwps_jax.store import Pool

VERBS = ("verify", "remove", "rename", "compact", "copy", "merge", "pack", "unpack")


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Adds the verbs of this file to the command line's."""
    one = verbs.add_parser("verify", parents=[common], help="compare every hash, look up every owner")
    one.set_defaults(run=_verify)
    one = verbs.add_parser("remove", parents=[common], help="remove a task's newest version, or TASK@N")
    one.add_argument("task", metavar="TASK")
    one.add_argument("--rehome", action="store_true", help="give its rows to the tasks that borrow them")
    one.set_defaults(run=_remove)
    one = verbs.add_parser("rename", parents=[common], help="rename a task with all its versions")
    one.add_argument("old", metavar="OLD")
    one.add_argument("new", metavar="NEW")
    one.set_defaults(run=_rename)
    one = verbs.add_parser("compact", parents=[common], help="remove what nobody refers to")
    one.add_argument("--older", action="store_true", help="versions too that are not their task's newest")
    one.set_defaults(run=_compact)
    one = verbs.add_parser("copy", parents=[common], help="copy a task into another pool")
    one.add_argument("task", metavar="TASK")
    one.add_argument("to", metavar="TO", help="folder of a pool of the same pre-trained model")
    one.add_argument("name", metavar="NAME", nargs="?", help="its name there; the same by default")
    one.set_defaults(run=_copy)
    one = verbs.add_parser("merge", parents=[common], help="copy every task of another pool into this one")
    one.add_argument("other", metavar="OTHER", help="folder of a pool of the same pre-trained model")
    one.set_defaults(run=_merge)
    one = verbs.add_parser("pack", parents=[common], help="write the whole pool to one file")
    one.add_argument("file", metavar="FILE", help="*.zip")
    one.set_defaults(run=_pack)
    one = verbs.add_parser("unpack", parents=[common], help="make POOL from a file that pack wrote")
    one.add_argument("file", metavar="FILE", help="*.zip")
    one.set_defaults(make=_unpack)


def _verify(pool: Pool, given: argparse.Namespace) -> None:
    found = pool.verify()
    if given.json:
        print_json([dataclasses.asdict(one) for one in found])
    for one in () if given.json else found:
        needed = f"; needed by {', '.join(one.versions)}" if one.versions else ""
        print_line(f"{one.where}: {one.problem}{needed}")
    if found:
        raise CwpsError(f"{pool.folder}: {len(found)} damaged; restore the named files from a copy")
    if not given.json:
        print_line(f"{pool.folder}: all files of {len(pool)} tasks are as they were stored")


def _remove(pool: Pool, given: argparse.Namespace) -> None:
    name = pool.version(given.task).name
    pool.remove(given.task, rehome=given.rehome)
    _tell(given, f"{name}: removed", removed=name)


def _rename(pool: Pool, given: argparse.Namespace) -> None:
    pool.rename(given.old, given.new)
    _tell(given, f"{given.old}: now {given.new}", renamed=given.old, to=given.new)


def _compact(pool: Pool, given: argparse.Namespace) -> None:
    removed = pool.compact(given.older)
    _tell(given, f"removed: {', '.join(removed) or 'nothing, all is needed'}", removed=removed)


def _copy(pool: Pool, given: argparse.Namespace) -> None:
    copied = pool.copy(given.task, Pool.open(given.to), given.name)
    _tell(given, f"{copied.name}: in {given.to}", copied=copied.name, to=given.to)


def _merge(pool: Pool, given: argparse.Namespace) -> None:
    merged = pool.merge(Pool.open(given.other))
    _tell(given, f"merged: {', '.join(merged) or 'nothing, all is here'}", merged=merged, to=given.pool)


def _pack(pool: Pool, given: argparse.Namespace) -> None:
    pack_pool(pool, given.file)
    _tell(given, f"{given.pool}: packed in {given.file}", packed=given.pool, to=given.file)


def _unpack(given: argparse.Namespace) -> None:
    tasks = list(unpack_pool(given.file, given.pool).tasks)
    _tell(given, f"{given.pool}: has {', '.join(tasks) or 'no tasks'}", unpacked=given.pool, tasks=tasks)


def _tell(given: argparse.Namespace, text: str, **values: Any) -> None:
    if given.json:
        print_json(values)
    else:
        print_line(text)
