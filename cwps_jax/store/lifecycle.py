"""The life of a stored task after it is learned: removed, renamed, compacted."""

import dataclasses
import shutil

from cwps_jax.core.trees import flatten
from cwps_jax.errors import CwpsError
from cwps_jax.methods import weights
from cwps_jax.settings import check_task_name
from cwps_jax.store.copying import Copying
from cwps_jax.store.index import Index, Version
from cwps_jax.store.rehoming import closure, stored_anew, without_owner
from cwps_jax.store.trees import TASKS


class Lifecycle(Copying):
    """A pool's contents, with the removal, renaming and compaction of tasks."""

    def remove(self, task: str, rehome: bool = False) -> None:
        """Removes a task's newest version, or the one named "task@n", with its files.

        Args:
            task: its name.
            rehome: whether versions that borrow its rows get these. Each row goes to the oldest of them, and
                the others borrow it from there. They are stored again under their names, and their variables
                stay the same to the bit; their files and their numbers in the pool are new.

        Raises:
            CwpsError: it is not in the pool, or is another version by now; others borrow its rows and
                `rehome` is false; or others need its whole model.
        """
        known = self.index.by_name.get(task)
        with self._turn() as index:
            self._see(index)
            version = self.version(task)
            if known and known.id != version.id:
                raise CwpsError(
                    f"{self.folder}: {task!r} is {version.name} now, which another process has stored; "
                    "nothing was removed: ask again"
                )
            dependants = [one for one in index.versions if version.id in self._trees.needs(one)]
            names, are = ", ".join(one.name for one in dependants), "are" if len(dependants) > 1 else "is"
            if dependants and not rehome:
                raise CwpsError(
                    f"{self.folder}: {version.name} cannot be removed: {names} {are} restored from it; "
                    f"remove {'those' if len(dependants) > 1 else 'that'} first, or rehome its rows"
                )
            whole = [one.name for one in dependants if version.id in one.uses]
            if whole:
                raise CwpsError(
                    f"{self.folder}: {version.name} cannot be removed: its rows are not enough for "
                    f"{', '.join(whole)}, restored from its whole model; remove what needs it first"
                )
            left = self._rehomed(index, version) if dependants else index.versions
            self._replace_index(index, tuple(one for one in left if one.id != version.id))

    def rename(self, old: str, new: str) -> None:
        """Renames a task with all its versions, and with compared methods' models of it; no file is touched.

        Args:
            old: the task's name.
            new: its new name.

        Raises:
            CwpsError: there is no such task, or the new name is not allowed or is taken.
        """
        check_task_name(new)
        with self._turn() as index:
            self._see(index)
            if old not in self.tasks:
                self.version(old)  # says that there is none, unless it is a version's name
                raise CwpsError(f"{self.folder}: {old!r} is one version; rename its task, with all of them")
            names = {old: new}
            for one in index.versions:
                if one.compared and one.task.startswith(f"{old}+"):
                    names[one.task] = new + one.task.removeprefix(old)
            taken = {one.task for one in index.versions} & {*names.values()}
            if taken:
                raise CwpsError(f"{self.folder}: {min(taken)!r} is in this pool already; choose another name")
            self._replace_index(
                index,
                tuple(dataclasses.replace(one, task=names.get(one.task, one.task)) for one in index.versions),
            )

    def compact(self, older: bool = False) -> tuple[str, ...]:
        """Removes files to which nothing refers: folders that killed writers have left.

        Args:
            older: whether to remove also versions that are not their task's newest and that no other version
                needs.

        Returns:
            Names of the removed folders and versions.
        """
        with self._turn() as index:
            self._see(index)
            kept = self._needed() if older else index.versions
            gone = [one.name for one in index.versions if one not in kept]
            if gone:
                self._replace_index(index, kept)
            folders = {one.folder for one in kept}
            tasks = self.folder / TASKS
            left = [one for one in tasks.iterdir() if one.name not in folders] if tasks.is_dir() else []
            for folder in left:
                shutil.rmtree(folder)
            return (*gone, *sorted(f"{TASKS}/{folder.name}" for folder in left))

    def _rehomed(self, index: Index, gone: Version) -> tuple[Version, ...]:
        """Writes the versions that borrow rows of one that goes, or of one of these; returns all versions."""
        versions = {one.id: one for one in index.versions}
        needed = {one.id: self._trees.owners(one) for one in index.versions}
        borrowing = closure(needed, [gone.id])
        ordered = [one for one in index.versions if one.id in borrowing]
        numbers = {one.id: index.next_id + place for place, one in enumerate(ordered)}
        ownerships = {one.id: self.ownership(one.name) for one in ordered if one.rows_sha256}
        places = without_owner(self.layout, gone.id, {one: numbers[one] for one in ownerships}, ownerships)
        staying = {one: one for one in {0, *versions} - {gone.id, *borrowing}}
        for one in ordered:
            own = self._trees.own(one).leaves
            if one.id in ownerships:
                rows, before = self._trees.rows(one.id), ownerships[one.id]
                stored = stored_anew(self.layout, own, rows, before, places[one.id], self._trees.rows)
            else:  # single weights over rows of others: what moves becomes its own
                params = flatten(self.effective(one.name)["params"])
                stored = weights.with_owners(self.layout, own, params, staying)
            new = dataclasses.replace(one, id=numbers[one.id])
            versions[one.id] = self._written(index, new, stored)
        return tuple(
            dataclasses.replace(one, uses=tuple(numbers.get(used, used) for used in one.uses))
            if numbers.keys() & {*one.uses}
            else one
            for one in versions.values()
        )
