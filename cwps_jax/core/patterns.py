"""Rules over paths: the leaves that are private by default, and patterns that have to match something."""

import difflib
import fnmatch
from collections.abc import Collection, Iterable, Sequence

from cwps_jax.errors import CwpsError

HEAD = "head"  # what a head is called unless a user says otherwise

# Leaves without output channels that no layer's rule covers, by the names that models give them.
PRIVATE = (
    *("*cls", "*_token", "*_tokens"),  # class, distillation, mask and register tokens
    *("*pos_emb*", "*posemb*", "*position*_emb*", "*relative_position_bias*"),
    *("*gamma", "*gamma_[0-9]", "*layer_scale*", "*layerscale*"),  # LayerScale
)


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path matches one of the patterns (`fnmatch`, in which "*" matches "/" too)."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def leaves_of(module: str, paths: Iterable[str]) -> list[str]:
    """Returns the paths of a module's leaves: of the one at that path, or else of all of that name."""
    exact = [path for path in paths if path.startswith(f"{module}/")]
    return exact or [path for path in paths if f"/{module}/" in path]


def leaves_of_heads(head: str | Sequence[str], paths: Collection[str]) -> list[str]:
    """Returns the paths of the leaves of a model's head, or of its heads.

    Args:
        head: path or name of a module, or several.
        paths: paths of all leaves.

    Raises:
        CwpsError: a head is not a module, see `check_head`.
    """
    heads = (head,) if isinstance(head, str) else tuple(head)
    for name in heads:
        check_head(name, paths)
    return [path for name in heads for path in leaves_of(name, paths)]


def check_patterns(patterns: Iterable[str], paths: Collection[str]) -> None:
    """Raises CwpsError for a pattern that matches no path, unless it is one of `PRIVATE`.

    Args:
        patterns: the given patterns.
        paths: paths of all leaves.
    """
    for pattern in patterns:
        if pattern not in PRIVATE and not any(matches(path, [pattern]) for path in paths):
            raise CwpsError(
                f"pattern {pattern!r} matches no parameter; paths are like {min(paths, default='none')!r}"
            )


def check_head(name: str, params: Collection[str]) -> None:
    """Raises CwpsError for a head that is not a module, unless it is the default: a model may have none.

    Args:
        name: of the head.
        params: paths of all leaves.
    """
    if name == HEAD or leaves_of(name, params):
        return
    modules = {part for path in params for part in (path.rpartition("/")[0], *path.split("/")[:-1]) if part}
    near = difflib.get_close_matches(name, sorted(modules), 1) or sorted(modules)
    raise CwpsError(
        f"the model has no module {name!r}: name its head by config.head, or head=; the nearest is "
        f"{near[0] if near else 'none'!r}"
    )
