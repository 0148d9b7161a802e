"""The three ways to run the resident tasks: merged, swapped and mixed."""

import collections
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.bank import address, programs
from cwps_jax.bank.compiled import Programs
from cwps_jax.bank.costs import Costs, bucket
from cwps_jax.bank.entries import Entry, whole_tree
from cwps_jax.bank.loaded import Loaded
from cwps_jax.bank.mixed import PrivateRows, mixed_apply
from cwps_jax.bank.resident import NoRoom, Resident
from cwps_jax.core.channels import Layout
from cwps_jax.core.trees import Tree, unflatten, unite
from cwps_jax.data.preparation import Preparation
from cwps_jax.errors import CwpsError
from cwps_jax.train.step import apply_model

WAYS = ("merged", "swapped", "mixed")
KEPT = 4  # the most trees that are kept of tasks that are often asked for; each is as large as the backbone
BATCH = 64  # the most pictures that go through a program at once


class Ways:
    """The ways to run the tasks of a bank. A caller must hold the bank's lock, except for `seconds`.

    A method that runs a program raises `NotCompiled` if it is the first of its kind.

    Args:
        resident: the contents of the device.
        model_of: the function from a dtype and a number of classes to the plain model.
        holding: see `Costs`; it compiles what is not compiled.

    Attributes:
        classes: the number of outputs of the model, at least as many as every task has.
        costs: the measured seconds.
        recent: the tasks of the last requests.
    """

    def __init__(
        self,
        resident: Resident,
        model_of: Callable[[str, int], nn.Module],
        holding: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self.resident = resident
        self.classes = 1
        self.costs = Costs(holding)
        self._programs = Programs()
        self._model_of = model_of
        self.recent: collections.deque[Entry] = collections.deque(maxlen=KEPT)
        self._forwards: dict[Any, Any] = {}
        self._mixed: dict[Any, Any] = {}

    def alone(self, entry: Entry, pixels: Any, way: str) -> jax.Array:
        """Returns a task's logits, (pictures, classes of the bank).

        Args:
            entry: the task.
            pixels: (pictures, height, width, channels).
            way: "merged" or "swapped"; a task that is not stored as channels is always merged.
        """
        variables = self.swap(entry.loaded) if way == "swapped" and entry.loaded else self.merge(entry)
        return self.forward(entry, variables, pixels)

    def merge(self, entry: Entry) -> Any:
        """Returns a task's variables, and keeps them for the next time."""
        kept = self.resident.kept
        if entry not in kept:
            if entry.loaded:
                tree = self._merged(entry.loaded)
            else:
                tree = whole_tree(entry, self.classes)
                self.resident.make_room(lambda: self.resident.device_bytes + _bytes(tree))
                tree = jax.device_put(tree)
            kept[entry] = tree
            while len(kept) > KEPT:
                kept.popitem(last=False)
        kept.move_to_end(entry)
        return kept[entry]

    def swap(self, task: Loaded, *, anew: bool = False) -> Any:
        """Returns a task's variables in the working copy; `anew` writes them even if they are there."""
        working = self.resident.working
        if working and working[0] is task and not anew:
            return working[1]
        self.resident.load([task])
        working = self.resident.working  # None if loading the task had to free the copy
        self.resident.working = None
        if working and working[0].leaves == task.leaves:
            tree = self._written(task, working[1])
        else:
            del working  # frees its memory
            tree = self._merged(task)
        self.resident.working = task, tree
        return tree

    def forward(self, entry: Entry, variables: Any, pixels: Any) -> jax.Array:
        """Returns the logits that a task's variables give for pixels, (pictures, classes of the bank)."""
        dtype, preparation = entry.described.group
        key = dtype, preparation, self.classes
        if key not in self._forwards:
            model = self._model_of(dtype, self.classes)
            self._forwards[key] = _forward(model, preparation)
        form = entry.loaded.table if entry.loaded else entry.version.id
        key_of_call = "forward", key, form, pixels.shape, pixels.dtype
        return self._programs.run(key_of_call, self._forwards[key], variables, pixels)

    def mixed(self, found: Sequence[Entry], pixels: Any) -> jax.Array:
        """Returns the logits of pictures of many tasks with equal `alike`, by halves if they do not fit.

        Args:
            found: the task of each picture.
            pixels: (pictures, height, width, channels), which may end in pictures of padding.
        """
        tasks = [entry.loaded for entry in found if entry.loaded]
        if len(tasks) < len(found):
            name = next(entry.name for entry in found if not entry.loaded)
            raise CwpsError(f"way='mixed': {name!r} is not stored as channels; leave the way out")
        resident, layout = self.resident, self.resident.layout
        try:
            resident.load(tasks)
        except NoRoom:
            if len(set(tasks)) == 1:
                raise
            half = len(pixels) // 2
            parts = (self.mixed(found[:half], pixels[:half]), self.mixed(found[half:], pixels[half:]))
            return jnp.concatenate(parts)
        room = resident.capacities.covering(task.capacity for task in tasks)
        addresses = [address.widened(layout, task.capacity, task.address, room) for task in tasks]
        addresses += addresses[:1] * (len(pixels) - len(tasks))
        first, table = tasks[0], tasks[0].table
        private = self._programs.run(
            ("of pictures", room, table, len(addresses), resident.tables.capacities),
            programs.of_pictures,
            *(layout, room, first.leaves, *resident.arguments(first), np.stack(addresses)),
        )
        key = *found[0].described.group, self.classes
        if key not in self._mixed:
            dtype, preparation = found[0].described.group
            self._mixed[key] = _mixed(self._model_of(dtype, self.classes), layout, preparation)
        key_of_call = "mixed", key, room, table, pixels.shape, pixels.dtype
        return self._programs.run(key_of_call, self._mixed[key], unflatten(resident.start), private, pixels)

    def seconds(self, counts: Mapping[Entry, int], image: np.ndarray | None) -> dict[str, float]:
        """Returns the seconds that each way takes for a request, and measures those that are missing.

        The caller need not hold the bank's lock: it is taken for one measurement after another.

        A kept tree is counted as free if it exists already, or if its task is among the recent ones.

        Args:
            counts: {task: number of pictures}.
            image: one of the pictures, (1, height, width, channels); None for zeros of the tasks' shape.
        """
        found = dict.fromkeys(WAYS, 0.0)
        for entry, count in counts.items():
            for size in sizes(count):
                takes = self._forward_seconds(entry, size, image)
                found["merged"] += takes
                found["swapped"] += takes
            if entry.loaded and entry not in self.resident.kept:
                found["swapped"] += self._seconds_of(
                    "swap", entry.loaded, functools.partial(self.swap, anew=True)
                )
                if entry not in self.recent:
                    found["merged"] += self._seconds_of("merge", entry.loaded, self._merged)
        if len(counts) == 1 or not all(entry.loaded for entry in counts):
            del found["mixed"]
            return found
        pictures = [entry for entry, count in counts.items() for _ in range(count)]
        for numbers in parts_of(pictures, "mixed"):
            found["mixed"] += self._mixed_seconds([pictures[number] for number in numbers], image)
        return found

    def asked(self, tasks: Collection[Entry]) -> None:
        """Notes the tasks of a request as the most recent ones."""
        for entry in dict.fromkeys(tasks):
            if entry in self.recent:
                self.recent.remove(entry)
            self.recent.append(entry)

    def forget(self, entry: Entry) -> None:
        """Frees the memory that a task holds on the device."""
        self.resident.kept.pop(entry, None)
        if entry in self.recent:
            self.recent.remove(entry)
        if entry.loaded:
            if self.resident.working and self.resident.working[0] is entry.loaded:
                self.resident.working = None
            self.resident.unload(entry.loaded)

    def _merged(self, task: Loaded) -> Any:
        resident = self.resident
        resident.load([task])
        own = sum(int(np.prod(leaf.shape)) * 4 for leaf in task.leaves)
        tree = _bytes(resident.start) + own
        resident.make_room(lambda: resident.device_bytes + tree, [task])
        return self._written(task, programs.empty(resident.layout, task.leaves, resident.start))

    def _written(self, task: Loaded, into: Any) -> Any:
        """Returns a task's variables, in the memory of the variables `into`, which are given up."""
        resident = self.resident
        return self._programs.run(
            ("written", task.capacity, task.table, resident.tables.capacities),
            programs.written,
            *(resident.layout, task.capacity, task.leaves, into, *resident.arguments(task), task.address),
        )

    def _seconds_of(self, what: str, task: Loaded, call: Callable[[Loaded], Any]) -> float:
        return self.costs.of((what, task.capacity, task.leaves), lambda: call(task))

    def _mixed_seconds(self, found: Sequence[Entry], image: np.ndarray | None) -> float:
        pixels = np.repeat(_example(found[0], image), bucket(len(found)), axis=0)
        capacities = [entry.loaded.capacity for entry in found if entry.loaded]
        room = self.costs.holding(lambda: self.resident.capacities.covering(capacities))
        what = ("mixed", alike(found[0]), room, pixels.shape, pixels.dtype.name)
        return self.costs.of(what, lambda: self.mixed(found, pixels))

    def _forward_seconds(self, entry: Entry, size: int, image: np.ndarray | None) -> float:
        pixels = np.repeat(_example(entry, image), size, axis=0)

        def call() -> Any:
            variables = self.swap(entry.loaded) if entry.loaded else self.merge(entry)
            return self.forward(entry, variables, pixels)

        return self.costs.of(("forward", entry.described.group, pixels.shape, pixels.dtype.name), call)


def sizes(count: int) -> list[int]:
    """Returns the batch sizes, padded to powers of two, in which `count` pictures go through a program."""
    return [BATCH] * (count // BATCH) + ([bucket(count % BATCH)] if count % BATCH else [])


def parts_of(found: Sequence[Entry], way: str) -> list[list[int]]:
    """Returns lists of the numbers of those pictures that go through a program together.

    Args:
        found: the task of each picture.
        way: "merged", "swapped" or "mixed".
    """
    together: dict[Any, list[int]] = {}
    for number, entry in enumerate(found):
        together.setdefault(alike(entry) if way == "mixed" else entry, []).append(number)
    return [some[at : at + BATCH] for some in together.values() for at in range(0, len(some), BATCH)]


def alike(entry: Entry) -> Any:
    """Returns a key that is equal for tasks whose pictures can go through a mixed program together."""
    return entry.described.group, entry.loaded and entry.loaded.table


def _example(entry: Entry, image: np.ndarray | None) -> np.ndarray:
    known = entry.described
    return np.zeros((1, *known.shape), known.pixels) if image is None else image


def _mixed(model: nn.Module, layout: Layout, preparation: Preparation) -> Any:
    def mixed(shared: Tree, private: PrivateRows, pixels: jax.Array) -> Any:
        # Leaves that the shared variables lack are each picture's own; those of the first picture fill in.
        own = jax.tree.map(lambda leaf: leaf[0], {"params": private.params, **private.other})
        return mixed_apply(model, layout, unite(own, shared), private, preparation.normalise(pixels))

    return jax.jit(mixed)


def _forward(model: nn.Module, preparation: Preparation) -> Any:
    def forward(variables: Tree, pixels: jax.Array) -> Any:
        other = {key: tree for key, tree in variables.items() if key != "params"}
        return apply_model(model, variables["params"], other, preparation.normalise(pixels), train=False)

    return jax.jit(forward)


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
