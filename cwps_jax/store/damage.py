"""The damage of a pool's files: every hash is compared, and every owner looked up."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from cwps_jax.errors import CwpsError
from cwps_jax.methods.channels import ownership
from cwps_jax.store import arrays
from cwps_jax.store.index import Version
from cwps_jax.store.rehoming import closure
from cwps_jax.store.trees import OWN, PRETRAINED, ROWS, SKETCH, TASKS, Trees


@dataclasses.dataclass(frozen=True)
class Damage:
    """A part of a pool that is not as it was stored.

    Attributes:
        where: the folder, within the pool's.
        problem: the damage, as text.
        versions: names of the versions that cannot be restored because of it; empty for a sketch, which only
            the search uses.
    """

    where: str
    problem: str
    versions: tuple[str, ...]


def damaged(trees: Trees) -> list[Damage]:
    """Returns all damage, by reading all files again.

    Args:
        trees: the trees of a pool, with its index.
    """
    return list(_damaged(Trees(trees.folder, trees.index)))


def _damaged(trees: Trees) -> Iterator[Damage]:
    index, problems = trees.index, {}
    for version in index.versions:
        for name, sha256 in (
            (OWN, version.own_sha256),
            (ROWS, version.rows_sha256),
            (SKETCH, version.sketch_sha256),
        ):
            if sha256:
                problems[version.id, name] = _problem(trees, f"{TASKS}/{version.folder}/{name}", sha256)
    readable = {one.id: one for one in index.versions if not problems[one.id, OWN]}
    borrowed = {number: trees.owners(one) for number, one in readable.items()}
    uses = {one.id: {*one.uses} for one in index.versions}

    def needing(first: set[int]) -> tuple[str, ...]:
        numbers = first | closure(uses, [*first])
        return tuple(one.name for one in index.versions if one.id in numbers)

    if problem := _problem(trees, PRETRAINED, index.pretrained_sha256):
        yield Damage(PRETRAINED, problem, tuple(one.name for one in index.versions))
    for version in index.versions:
        where, number = f"{TASKS}/{version.folder}", version.id
        if (problem := problems[number, OWN]) or (problem := _wrong_owner(trees, version, readable)):
            yield Damage(f"{where}/{OWN}", problem, needing({number}))
        if problem := problems.get((number, ROWS), ""):
            borrowers = {one for one, owners in borrowed.items() if number in owners}
            yield Damage(f"{where}/{ROWS}", problem, needing({number, *borrowers}))
        if problem := problems.get((number, SKETCH), ""):
            yield Damage(f"{where}/{SKETCH}", problem, ())


def _problem(trees: Trees, where: str, sha256: str) -> str:
    try:
        arrays.load(trees.folder / where, sha256)
    except CwpsError as error:
        return str(error)
    return ""


def _wrong_owner(trees: Trees, version: Version, readable: Mapping[int, Version]) -> str:
    """Returns the damage of a version's references; "" if none is known.

    Args:
        trees: the pool's.
        version: one that is readable itself.
        readable: {number: version} of those whose own trees are.
    """
    index = trees.index
    missing = (trees.owners(version) | {*version.uses}) - index.by_id.keys()
    if missing:
        return f"it is restored from versions that are not in the pool, of the numbers {sorted(missing)}"
    if not version.rows_sha256:
        return ""
    counts: dict[int, Mapping[str, int]] = {version.id: _rows(trees, version)}
    for path, (owner, row) in ownership(index.layout, trees.own(version), version.id).items():
        for one in {int(number) for number in np.unique(owner)} & readable.keys():
            if one not in counts:
                counts[one] = _rows(trees, readable[one])
            if row[owner == one].max() >= counts[one].get(path, 0):
                return f"{path} has channels of {readable[one].name} that are not there"
    return ""


def _rows(trees: Trees, version: Version) -> dict[str, int]:
    """Returns the number of rows of each layer of a version, by its masks."""
    if not version.rows_sha256:
        return {}
    found = ownership(trees.index.layout, trees.own(version), version.id)
    return {path: int(np.sum(owner == version.id)) for path, (owner, _) in found.items()}
