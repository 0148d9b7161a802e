"""Copies of versions from one pool into another of the same pre-trained model: one of them, or all."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.methods import weights
from cwps_jax.methods.method import Stored
from cwps_jax.settings import check_task_name
from cwps_jax.store.index import Index, Version
from cwps_jax.store.rehoming import stored_anew, with_owners
from cwps_jax.store.writing import Writable


class Copying(Writable):
    """A pool's contents, with the copying of versions into another pool."""

    def copy(self, task: str, to: "Copying", name: str | None = None) -> Version:
        """Copies a task's newest version, or the one named "task@n", into another pool.

        Rows that it borrows become its own there, unless the other pool has the same version that stores
        them. Tasks that it needs as a whole (aTLAS, PackNet) are copied too, under their own names, unless
        the other pool has them under any name. Its variables are the same to the bit.

        Args:
            task: its name.
            to: a pool of the same pre-trained model.
            name: its name there; the same by default.

        Returns:
            The new version.

        Raises:
            CwpsError: it is not in the pool; the other pool has another pre-trained model; its name, or that
                of a task that is copied with it, is taken there; or a stored tree is damaged. Nothing is
                copied then.
        """
        version, name = self.version(task), self.version(task).task if name is None else name
        check_task_name(name)
        self._check_same_model(to, version.name)
        with to._turn() as index:
            to._see(index)
            if any(one.task == name for one in index.versions):
                raise CwpsError(f"{to.folder}: {name!r} is in this pool already; give the copy another name")
            names = {name, *(one.task for one in index.versions)}
            copied = self._with_whole(version, to, name, index, {}, names)
            to._replace_index(index, copied.versions)
            return to.version(name)

    def merge(self, other: "Copying") -> tuple[str, ...]:
        """Copies every task of another pool into this one, or nothing.

        These are each task's newest version, the compared methods' models of it, and older versions that
        these need. A version that this pool has already, under the same name, stays as it is.

        Args:
            other: a pool of the same pre-trained model, which stays as it is.

        Returns:
            Names of the versions that are new here, such as "birds@1".

        Raises:
            CwpsError: the other pool has another pre-trained model; names belong to other models here; or a
                stored tree is damaged.
        """
        other._check_same_model(self, "its tasks")
        with self._turn() as index:
            self._see(index)
            known: dict[int, int] = {}
            names = {one.task for one in index.versions}
            needed = other._needed()
            for one in needed:
                same = [
                    two for two in index.versions if two.task == one.task and _same(other, one, self, two)
                ]
                known.update({one.id: same[0].id} if same else {})
            taken = {one.task: one for one in needed if one.id not in known and one.task in names}
            if taken:
                raise CwpsError(
                    f"{self.folder}: {', '.join(taken)} {'is' if len(taken) == 1 else 'are'} in this pool "
                    f"already, and other models in {other.folder}; nothing was merged: rename them in one"
                )
            merged, waiting = index, [one for one in needed if one.id not in known]
            while waiting:  # an owner before those that borrow of it, whatever their numbers
                one = next(one for one in waiting if other._trees.needs(one) <= {*known})
                merged = other._brought(one, self, (one.task, one.version), merged, known)
                waiting.remove(one)
            if merged is not index:
                self._replace_index(index, merged.versions)
            return tuple(one.name for one in merged.versions[len(index.versions) :])

    def needed(self, names: Iterable[str]) -> tuple[Version, ...]:
        """Returns versions and all others that they need to be restored, oldest first.

        Args:
            names: tasks' names, or "task@n".
        """
        kept = more = {self.version(name).id for name in names}
        while more := set().union(*(self._trees.needs(self.index.by_id[one]) for one in more)) - kept:
            kept = kept | more
        return tuple(one for one in self.index.versions if one.id in kept)

    def _needed(self) -> tuple[Version, ...]:
        """Returns each task's newest version, and older ones that these need."""
        return self.needed({one.task for one in self.index.versions})

    def _check_same_model(self, to: "Copying", what: str) -> None:
        if (self.index.pretrained_sha256, self.layout) != (to.index.pretrained_sha256, to.layout):
            raise CwpsError(
                f"{to.folder}: its pre-trained model is not that of {self.folder}; copy {what} into a pool "
                "that was made with the same weights and private leaves"
            )

    def _with_whole(
        self, version: Version, to: "Copying", task: str, index: Index, known: dict[int, int], names: set[str]
    ) -> Index:
        """Writes a version after those that it is restored from as a whole, by names that are not taken."""
        for used in map(self.index.by_id.__getitem__, version.uses):
            same = [two for two in to.index.versions if _same(self, used, to, two)]
            if same:
                known[used.id] = same[0].id
            elif used.id not in known:
                if used.task in names:
                    raise CwpsError(
                        f"{to.folder}: {version.name} needs {used.name} as a whole, and {used.task!r} is "
                        f"another model there; copy {used.name} under another name first"
                    )
                names.add(used.task)
                index = self._with_whole(used, to, used.task, index, known, names)
        return self._brought(version, to, (task, 1), index, known)

    def _brought(
        self, version: Version, to: "Copying", named: tuple[str, int], index: Index, known: dict[int, int]
    ) -> Index:
        """Writes a version into another pool, and returns that pool's index with it.

        Args:
            version: of this pool.
            to: the other pool, whose turn it is.
            named: its task and its version there.
            index: the other pool's.
            known: {a version's number here: its number there}, of all that it needs whole; it is added.
        """
        own, (task, number) = self._trees.own(version).leaves, named
        stored = Stored(unflatten(own))
        there = {one.rows_sha256: one.id for one in index.versions if one.rows_sha256 and not one.compared}
        owners = {
            one.id: there[one.rows_sha256]
            for one in self.index.versions
            if one.id != version.id and one.rows_sha256 in there
        }
        if weights.borrows(self.layout, own):
            params = flatten(self.effective(version.name)["params"])
            stored = weights.with_owners(self.layout, own, params, {0: 0, **owners})
        elif version.rows_sha256:
            before, rows = self.ownership(version.name), self._trees.rows(version.id)
            after = with_owners(before, {0: 0, **owners})
            stored = stored_anew(self.layout, own, rows, before, after, self._trees.rows)
        new = dataclasses.replace(
            version,
            id=index.next_id,
            task=task,
            version=number,
            settings=dataclasses.asdict(self.method(version.name)),
            uses=tuple(known[one] for one in version.uses),
        )
        new = to._written(index, new, stored)
        known[version.id] = new.id
        return dataclasses.replace(index, versions=(*index.versions, new), next_id=new.id + 1)


def _same(pool: Copying, one: Version, other: Copying, two: Version) -> bool:
    """Whether versions of two pools are the same model to the bit, of the same training.

    The owners of its channels may differ, and so may the numbers of the versions that it needs.
    """
    if (one.method, one.record) != (two.method, two.record):
        return False
    if not one.rows_sha256 and one.own_sha256 != two.own_sha256:
        return False
    ours, theirs = (flatten(each.effective(it.name)) for each, it in ((pool, one), (other, two)))
    return ours.keys() == theirs.keys() and all(
        np.asarray(ours[path]).tobytes() == np.asarray(theirs[path]).tobytes() for path in ours
    )
