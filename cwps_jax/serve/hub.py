"""A pool on the Hugging Face hub: `push_to_hub` and `from_hub`, with the extra `hub`."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from cwps_jax.errors import CwpsError
from cwps_jax.extras import check_extra
from cwps_jax.serve.shared_folder import save_pretrained
from cwps_jax.store.pool import Pool

OF_THIS_MACHINE = (".lock", ".learning/*")
THEIRS = ("pretrained/*", "tasks/*")  # files of an earlier push that are removed if this one lacks them


def push_to_hub(pool: Pool, repo_id: str, tasks: Sequence[str] = (), *, private: bool | None = None) -> str:
    """Uploads tasks with everything that they need to a repository of the hub, as `save_pretrained` does.

    The repository is made if it does not exist. One commit brings the files that `save_pretrained` writes;
    the model card is replaced, and other files of the repository stay.

    Args:
        pool: the stored models, which stay as they are.
        repo_id: the repository, "owner/name".
        tasks: names of tasks, or one name; all tasks by default.
        private: whether a new repository is private; by default the owner's setting decides.

    Returns:
        The address of the commit.

    Raises:
        CwpsError: huggingface_hub is not installed, the hub refuses, or see `save_pretrained`.

    Example:
        >>> push_to_hub(pool, "me/birds", tasks="birds")  # doctest: +SKIP
    """
    hub = _hub(repo_id)
    with tempfile.TemporaryDirectory() as place, _readable_errors(hub, repo_id, "brought to"):
        saved = save_pretrained(pool, pathlib.Path(place, "pool"), tasks)
        api = hub.HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=saved.folder,
            commit_message=f"{', '.join(saved.tasks)}: stored by cwps_jax",
            ignore_patterns=list(OF_THIS_MACHINE),
            delete_patterns=list(THEIRS),
        )
    return str(commit.commit_url)


def from_hub(repo_id: str, folder: str | os.PathLike[str], *, revision: str | None = None) -> Pool:
    """Downloads a pool from the hub to a new folder, and checks every hash before the folder appears.

    Args:
        repo_id: the repository, "owner/name".
        folder: the folder to make; it must not exist.
        revision: a branch, a tag or a commit; by default the newest commit. Only a commit cannot change.

    Returns:
        The pool; in later processes `Pool.open(folder)` opens it.

    Raises:
        CwpsError: huggingface_hub is not installed, the folder exists, the hub has no such repository, or
            the repository is not a pool or is damaged.

    Example:
        >>> pool = from_hub("me/birds", "birds")  # doctest: +SKIP
    """
    hub, target = _hub(repo_id), pathlib.Path(folder)
    if os.path.lexists(target):
        raise CwpsError(
            f"{target}: is there already; open it by Pool.open, or name a folder that is to be made"
        )
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with _readable_errors(hub, repo_id, "brought from"):
            hub.snapshot_download(repo_id, revision=revision, local_dir=partial)
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # the client's notes on its downloads
        damage = Pool.open(partial).verify()
        if damage:
            raise CwpsError(f"{repo_id}: {len(damage)} damaged, the first {damage[0].where}; push it again")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Pool.open(target)


def _hub(repo_id: str) -> Any:
    check_extra("hub", repo_id)
    import huggingface_hub
    import huggingface_hub.errors

    return huggingface_hub


@contextlib.contextmanager
def _readable_errors(hub: Any, repo_id: str, what: str) -> Iterator[None]:
    """Turns errors of the hub's client into CwpsErrors of one line.

    The client's versions use different network libraries. The base class of the client's own error is also
    the base class of all errors of that library, for example if a host cannot be reached.
    """
    try:
        yield
    except CwpsError:
        raise
    except (OSError, ValueError, *hub.errors.HfHubHTTPError.__bases__) as error:
        why = " ".join(str(error).split())
        raise CwpsError(f"{repo_id}: could not be {what} the hub: {why}") from error
