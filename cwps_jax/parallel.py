"""One step, two doors: jit over a mesh of all devices, or pmap. Both give the same numbers.

The batch is split over the mesh's one axis, `data`; everything else is on every device. Under jit the
compiler sees the global batch, so means and norm statistics are global by themselves; under pmap a step
sees its own part and averages over `AXIS`. (Dropout differs: each part has a key of its own.) Under jit the
devices may belong to many processes, each of which brings its share of a batch.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cwps_jax.errors import CwpsError
from cwps_jax.sharding import Rules, spec_of

AXIS = "data"


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of every batch that a process reads: the `index`-th of `count` equal parts."""

    index: int = 0
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Parallel:
    """The spreading of steps over devices.

    Attributes:
        mode: "jit" or "pmap".
        shard: rules for arrays of a training that are spread over the devices; by default each device has all
            of them.
        devices: the devices; all of them by default. Those of a process are side by side, in the order of the
            processes, so the shares of a batch are in its order.

    Raises:
        CwpsError: pmap over the devices of many processes, or with arrays that are spread.
    """

    mode: Literal["jit", "pmap"] = "jit"
    devices: Sequence[jax.Device] = dataclasses.field(
        default_factory=lambda: tuple(sorted(jax.devices(), key=lambda one: (one.process_index, one.id)))
    )

    shard: Rules = ()

    def __post_init__(self) -> None:
        if self.mode == "pmap" and self.shard:
            raise CwpsError("config.shard: needs config.parallel=jit; under pmap each device has all arrays")
        if self.mode == "pmap" and self.share.count > 1:
            raise CwpsError(
                f"config.parallel = 'pmap': serves one process, and there are {self.share.count}; set "
                "config.parallel=jit"
            )

    @property
    def axis_name(self) -> str | None:
        """The axis that a step has to average over: None under jit, which sees the global batch."""
        return AXIS if self.mode == "pmap" else None

    @functools.cached_property
    def share(self) -> Share:
        """Which part of each batch this process reads."""
        processes = sorted({device.process_index for device in self.devices})
        return Share(processes.index(jax.process_index()), len(processes))

    @property
    def mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (AXIS,))

    def _sharding(self, split: bool) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(AXIS) if split else PartitionSpec())

    def replicate(self, tree: Any) -> Any:
        """Returns the tree on every device, always as a copy, because donating it must not free another."""
        count = len(self.devices)

        def place(leaf: Any) -> jax.Array:
            # A host copy of its own: a CPU device may otherwise take over the memory of the array given.
            leaf = np.array(leaf, copy=True)
            if self.mode == "pmap":
                leaf = np.stack([leaf] * count)
            sharding = self._sharding(self.mode == "pmap")
            if self.share.count == 1:
                return jax.device_put(leaf, sharding)
            # Every process has the whole: nothing is sent, where `device_put` would compare them all.
            return jax.make_array_from_callback(leaf.shape, sharding, lambda index: np.array(leaf[index]))

        return jax.tree.map(place, tree)

    def place(self, tree: Any) -> Any:
        """Returns a step's tree on the devices, spread by the rules; always a copy, as with `replicate`."""
        if not self.shard:
            return self.replicate(tree)

        def place(path: Any, leaf: Any) -> jax.Array:
            leaf = np.asarray(leaf)
            return jax.make_array_from_callback(
                leaf.shape, self._by_rules(path, leaf), lambda index: np.array(leaf[index])
            )

        return jax.tree_util.tree_map_with_path(place, tree)

    def _by_rules(self, path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(self.mesh, spec_of(self.shard, name, leaf.shape, len(self.devices), AXIS))

    def whole(self, tree: Any) -> Any:
        """Returns, in a step, the tree on every device; arrays that are spread are gathered here, once."""
        return jax.lax.with_sharding_constraint(tree, self._sharding(False)) if self.shard else tree

    def connect(self) -> None:
        """Lets the devices of all processes exchange a number. Call it where all processes have just met.

        On CPUs, Gloo connects the devices when they first exchange anything, and gives up if one process
        comes half a minute after another. Before a first step they may: one may compile it for longer.
        """
        if self.share.count > 1:
            given = self.split(np.ones(len(self.devices) // self.share.count, np.float32))
            jax.block_until_ready(jax.jit(jnp.sum, out_shardings=self._sharding(False))(given))

    def check_batch(self, batch_size: int, group: int = 1) -> None:
        """Raises CwpsError unless the devices divide the batch, with whole groups of items on each."""
        count = len(self.devices)
        if batch_size % (count * group):
            wanted = f"the {count} devices" if group == 1 else f"{count * group}, {group} items per device"
            raise CwpsError(f"config.batch_size = {batch_size}: must be a multiple of {wanted}")

    def split(self, batch: Any) -> Any:
        """Returns a host batch, this process's share of it, with its leading axis split over the devices.

        Raises:
            CwpsError: the devices do not divide the batch.
        """
        local = len(self.devices) // self.share.count

        def place(leaf: Any) -> jax.Array:
            leaf = np.asarray(leaf)
            self.check_batch(len(leaf) * self.share.count)
            if self.mode == "pmap":
                leaf = leaf.reshape(local, len(leaf) // local, *leaf.shape[1:])
            return jax.make_array_from_process_local_data(self._sharding(True), leaf)

        return jax.tree.map(place, batch)

    def seen(self, tree: Any) -> Any:
        """Returns the shapes of placed arrays, as a compiled function sees them."""
        first = 1 if self.mode == "pmap" else 0  # the axis that pmap maps over
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[first:], leaf.dtype), tree)

    def compile(
        self,
        function: Callable[..., Any],
        *,
        donate: tuple[int, ...] = (),
        split_output: bool = False,
        placed_output: bool = False,
        rounds: int = 1,
    ) -> "Compiled":
        """Returns the function compiled for the devices.

        Args:
            function: takes and returns trees; under pmap each device's own part of the split arrays.
            donate: positions of arguments whose buffers the result may take over.
            split_output: whether the result's first axis is the batch's; otherwise it is the same everywhere.
                With several processes the devices gather it, because a process cannot read another's memory.
            placed_output: whether the result is a tuple of trees that are spread as `place` does.
            rounds: see `Compiled`.
        """
        if self.mode == "pmap":
            jitted = jax.pmap(function, AXIS, devices=self.devices, donate_argnums=donate)
            return Compiled(jitted, rounds=rounds, compiling=_without_shardy)
        if placed_output and self.shard:

            @functools.wraps(function)
            def spread(*args: Any) -> Any:
                constrain = lambda path, leaf: jax.lax.with_sharding_constraint(
                    leaf, self._by_rules(path, leaf)
                )
                return tuple(jax.tree_util.tree_map_with_path(constrain, part) for part in function(*args))

            return Compiled(jax.jit(spread, donate_argnums=donate), devices=len(self.devices), rounds=rounds)
        sharding = self._sharding(split_output and self.share.count == 1)
        jitted = jax.jit(function, donate_argnums=donate, out_shardings=sharding)
        return Compiled(jitted, devices=len(self.devices), rounds=rounds)

    def fetch(self, tree: Any, *, split: bool = False) -> Any:
        """Returns the tree as NumPy arrays on the host. Waits for the devices."""
        if self.shard and self.share.count > 1:  # a process reads no other's memory
            tree = jax.jit(lambda one: one, out_shardings=self._sharding(False))(tree)
        tree = jax.device_get(tree)
        if self.mode == "pmap":
            if split:
                return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)
            return jax.tree.map(lambda leaf: leaf[0], tree)
        return tree


class Compiled:
    """A jitted function that is compiled ahead of its first call, so that its costs can be read.

    Args:
        jitted: the function.
        devices: number of devices over which one program is spread: all under jit, 1 under pmap.
        rounds: rounds of the loop in which nearly all of its work is done; XLA counts the loop's body once.
        compiling: gives the context in which it is compiled.

    Attributes:
        flops: floating-point operations of the last call, one device's share, or None before the first. XLA
            counts them before compilation, because a compiled program calls libraries on a GPU, which it
            cannot count.
        bytes_accessed: bytes that the compiled program reads and writes on one device, by XLA's count.
        peak_bytes: bytes of arguments, results and temporaries of the last call, by XLA's own analysis.
        compilations: number of compiled programs, one for each set of shapes.
    """

    def __init__(
        self,
        jitted: Any,
        devices: int = 1,
        rounds: int = 1,
        compiling: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._jitted, self._compiling = jitted, compiling
        self._share = rounds / devices
        self._programs: dict[Any, Any] = {}
        self.flops: float | None = None
        self.bytes_accessed: float | None = None
        self.peak_bytes: int | None = None

    @property
    def compilations(self) -> int:
        return len(self._programs)

    def lower(self, *args: Any) -> Any:
        """Returns the lowered program for arguments of these shapes (a `jax.stages.Lowered`)."""
        return self._jitted.lower(*args)

    def prepare(self, *args: Any) -> Any:
        """Returns the program for arguments of these shapes, compiled but not run."""
        leaves, structure = jax.tree.flatten(args)
        signature = (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if signature not in self._programs:
            with self._compiling():
                lowered = self.lower(*args)
                program = lowered.compile()
            memory = program.memory_analysis()
            peak_bytes = memory and (
                memory.argument_size_in_bytes
                + memory.output_size_in_bytes
                + memory.temp_size_in_bytes
                - memory.alias_size_in_bytes
            )
            flops = (lowered.cost_analysis() or {}).get("flops")
            bytes_accessed = (program.cost_analysis() or {}).get("bytes accessed")
            self._programs[signature] = program, flops and flops * self._share, bytes_accessed, peak_bytes
        program, self.flops, self.bytes_accessed, self.peak_bytes = self._programs[signature]
        return program

    def __call__(self, *args: Any) -> Any:
        return self.prepare(*args)(*args)


@contextlib.contextmanager
def _without_shardy() -> Iterator[None]:
    """Compiles a pmap, which has nothing to partition, without the partitioner Shardy.

    That of jaxlib 0.11.2 crashes if an array is empty, as are the rows of a layer without open channels.
    """
    before = jax.config.values["jax_use_shardy_partitioner"]
    jax.config.update("jax_use_shardy_partitioner", False)
    try:
        yield
    finally:
        jax.config.update("jax_use_shardy_partitioner", before)


def mean(value: jax.Array, axis_name: str | None) -> jax.Array:
    """Returns the mean over all devices of a value that is already the mean over this one's part."""
    return value if axis_name is None else jax.lax.pmean(value, axis_name)


def own_key(key: jax.Array, axis_name: str | None) -> jax.Array:
    """Returns a key that differs between the devices' parts of a batch."""
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))
