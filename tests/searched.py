"""An independent search in float64 NumPy, and pools to search."""

import itertools

import numpy as np
import zoo
from stored_models import whole_models

from cwps_jax.core.channels import layout_from_axes
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.search.composite import Search, composite
from cwps_jax.search.models import StoredModels, model_rows
from cwps_jax.search.sketch import sketched

OPTIONS = [
    Search(distance, granularity, candidates)
    for distance, (granularity, candidates) in itertools.product(
        ("l2", "cosine", "change"),
        (("channel", "aligned"), ("layer", "aligned"), ("model", "aligned"), ("channel", "any")),
    )
]
names = lambda search: f"{search.distance}-{search.granularity}-{search.candidates}"

SHAPES = {"a": {"kernel": (16, 6), "bias": (6,)}, "b": {"kernel": (3, 3, 2, 5)}, "c": {"kernel": (18, 2, 3)}}
AXES = {"a/kernel": (-1,), "a/bias": (-1,), "b/kernel": (-1,), "c/kernel": (-2, -1)}
LAYOUT = layout_from_axes(unflatten({path: np.zeros(shape) for path, shape in flatten(SHAPES).items()}), AXES)


def find(child, models, search):
    """Searches whole models, or stored rows; returns the parent and {path: (models, channels)}."""
    if isinstance(models, list):
        models = whole_models(LAYOUT, models)
    parent, sources = composite(LAYOUT, unflatten(child), models, search)
    found = {path: (np.asarray(one.model), np.asarray(one.channel)) for path, one in sources.items()}
    return flatten(parent), found


def rows(params):
    """{path of a kernel: (channels, size)} by plain NumPy, float64."""
    return {layer.path: zoo.rows_of(layer, params).astype(np.float64) for layer in LAYOUT.layers}


def from_rows(rows):
    """Inverse of `rows`, float32."""
    a = rows["a/kernel"]
    params = {
        "a/kernel": a[:, :-1].T,
        "a/bias": a[:, -1],
        "b/kernel": rows["b/kernel"].reshape(5, 3, 3, 2).transpose(1, 2, 3, 0),
        "c/kernel": rows["c/kernel"].reshape(2, 3, 18).transpose(2, 0, 1),
    }
    return {path: np.ascontiguousarray(leaf, np.float32) for path, leaf in params.items()}


def random_params(rng, around=None, scale=1.0):
    around = around or {path: 0.0 for path in AXES}
    shapes = flatten(SHAPES)
    noise = {path: rng.standard_normal(shapes[path]) for path in AXES}
    return {path: np.float32(around[path] + scale * noise[path]) for path in AXES}


def cosine(a, b):
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / norm if norm else 0.0


def reference(child, models, search):
    """The sources, by loops over channels, models and candidates."""
    child, models = rows(child), [rows(model) for model in models]
    found = {}
    if search.granularity == "model":
        # Rows of other layers are longer: zeros make them alike, and change no sum.
        width = max(own.shape[1] for own in child.values())
        whole = lambda each: np.concatenate(
            [np.pad(r, ((0, 0), (0, width - r.shape[1]))) for r in each.values()]
        )
        cost = [layer_cost(whole(child), whole(model), whole(models[0]), search) for model in models]
        return {
            path: (np.full(len(own), np.argmin(cost)), np.arange(len(own))) for path, own in child.items()
        }
    for path, own in child.items():
        if search.granularity == "layer":
            cost = [layer_cost(own, model[path], models[0][path], search) for model in models]
            found[path] = np.full(len(own), np.argmin(cost)), np.arange(len(own))
            continue
        picked = []
        for channel, row in enumerate(own):
            best = None
            for k, model in enumerate(models):
                for other in range(len(own)) if search.candidates == "any" else [channel]:
                    cost = row_cost(row, model[path][other], models[0][path][channel], search)
                    if best is None or cost < best[0]:
                        best = cost, k, other
            picked.append(best[1:])
        found[path] = tuple(np.array(picked).T)
    return found


def row_cost(row, other, start, search):
    if search.distance == "l2":
        return np.sum((row - other) ** 2)
    if search.distance == "cosine":
        return 1 - cosine(row, other)
    agreement = cosine(row - start, other - start) * np.sqrt(row.size)
    return -agreement if agreement > search.z else (0.0 if np.all(other == start) else 1.0)


def layer_cost(own, model, start, search):
    if search.distance == "change":
        return row_cost(own.ravel(), model.ravel(), start.ravel(), search)
    return sum(row_cost(a, b, s, search) for a, b, s in zip(own, model, start, strict=True))


def assert_found(found, wanted):
    assert found.keys() == wanted.keys()
    for path, (model, channel) in wanted.items():
        np.testing.assert_array_equal(found[path][0], model, err_msg=path)
        np.testing.assert_array_equal(found[path][1], channel, err_msg=path)


class SharedRows:
    """Models that borrow of each other, with rows that are stored twice, never moved, or nearly equal.

    Attributes:
        stored: the models as stored rows.
        models: the same, each whole.
        reads: owners in the order in which they were read.
        sketches: owners whose sketches were read.
    """

    def __init__(self, rng, tasks, search):
        self.reads, self.sketches = [], []
        whole = [rows(random_params(rng))]
        owner, row = ({path: [np.zeros(len(own), int)] for path, own in whole[0].items()} for _ in range(2))
        packed, self.active = [{}], [{}]
        for path, own in whole[0].items():
            row[path][0] = np.arange(len(own))
        for task in range(1, tasks + 1):
            whole.append({})
            packed.append({})
            self.active.append({})
            for path, start in whole[0].items():
                channels = np.arange(len(start))
                lender, scattered = rng.integers(task), 1.0 if search.candidates == "any" else 0.2
                lent = rng.permutation(channels) if rng.random() < scattered else channels
                owner[path].append(owner[path][lender][lent])
                row[path].append(row[path][lender][lent])
                values = whole[lender][path][lent].copy()
                active = rng.random(len(start)) < 0.4
                for channel in np.flatnonzero(active):
                    values[channel] = self._row(rng, start[channel], whole, path, channel, search)
                owner[path][-1] = np.where(active, task, owner[path][-1])
                row[path][-1] = np.where(active, np.cumsum(active) - 1, row[path][-1])
                whole[task][path] = values.astype(np.float32).astype(np.float64)
                packed[task][path] = whole[task][path][active]
                self.active[task][path] = np.flatnonzero(active)
        self.models = [from_rows(model) for model in whole]
        self.stored = StoredModels(
            *({path: np.stack(each) for path, each in values.items()} for values in (owner, row)),
            lambda number: self._read(number, packed),
            lambda number: self._sketch(number, packed),
            lambda: self.models[0],
        )

    def _row(self, rng, start, whole, path, channel, search):
        kind, other = rng.integers(4), whole[rng.integers(len(whole) - 1)][path][channel]
        if kind == 0:
            return start  # stored, and never moved
        if kind == 1:
            return other  # stored twice
        if kind == 2 and search.candidates == "aligned":
            # Of moves of 0.3. Near 1, a cosine in float32 tells less apart than a distance.
            return other + (1e-2 if search.distance == "change" else 1e-4) * rng.standard_normal(start.shape)
        return start + 0.3 * rng.standard_normal(start.shape)

    def _read(self, number, packed):
        self.reads.append(number)
        return self._rows(number, packed)

    def child(self, rng):
        """A child near the seventh model; of each layer a channel is a stored row, and one never moved."""
        near = rows(self.models[7])
        child = {path: own + 0.1 * rng.standard_normal(own.shape) for path, own in near.items()}
        for path, own in child.items():
            own[0], own[1] = near[path][0], rows(self.models[0])[path][1]
        return from_rows(child)

    def _sketch(self, number, packed):
        self.sketches.append(number)
        return sketched(LAYOUT, self._rows(number, packed), self.active[number], self._rows(0, packed))

    def _rows(self, number, packed):
        if number == 0:
            return model_rows(LAYOUT, self.models[0])
        stored = {path: own.astype(np.float32) for path, own in packed[number].items()}
        kernel = stored["a/kernel"]
        return {**stored, "a/kernel": kernel[:, :-1], "a/bias": kernel[:, -1:]}
