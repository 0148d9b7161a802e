"""Writes split lists for image folders that come without any, such as Omniglot's images_background.

    python scripts/make_split_lists.py images_background --test-percent 25

For each task of the folder, `<task>/<class>/<file>`, it writes `<task>_train.txt` and `<task>_test.txt`
beside it. Of each class that share is for testing whose files have the lowest hashes, so names and order have
no part in it, and equal files stay together. Lists that are there already are left alone.
"""

import argparse
import hashlib
import pathlib
import sys
from collections import defaultdict
from itertools import chain


def visible(folder: pathlib.Path, kind: str) -> list[pathlib.Path]:
    """Returns what is in a folder that is no leftover of an operating system: "is_dir" or "is_file"."""
    leftovers = ("thumbs.db", "desktop.ini", "__macosx")
    return [
        path
        for path in sorted(folder.iterdir())
        if getattr(path, kind)() and not path.name.startswith(".") and path.name.lower() not in leftovers
    ]


def split_class(folder: pathlib.Path, share: float) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Returns a class folder's files for training and for testing."""
    by_content = defaultdict(list)
    for path in visible(folder, "is_file"):
        by_content[hashlib.sha256(path.read_bytes()).digest()].append(path)
    if len(by_content) < 2:
        sys.exit(f"{folder}: needs two different images, one to train on and one to test on")
    in_order = [by_content[digest] for digest in sorted(by_content)]
    held_out = min(max(1, round(share * len(in_order))), len(in_order) - 1)
    return sorted(chain(*in_order[held_out:])), sorted(chain(*in_order[:held_out]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data_dir", type=pathlib.Path)
    parser.add_argument("--test-percent", type=float, default=20.0)
    arguments = parser.parse_args()
    if not 0 < arguments.test_percent < 100:
        parser.error("--test-percent must be between 0 and 100")
    if not arguments.data_dir.is_dir():
        parser.error(f"{arguments.data_dir}: no such folder")
    for task in visible(arguments.data_dir, "is_dir"):
        lists = [arguments.data_dir / f"{task.name}_{split}.txt" for split in ("train", "test")]
        classes = visible(task, "is_dir")
        if any(path.exists() for path in lists) or {"train", "test"} <= {path.name for path in classes}:
            print(f"{task}: has its splits")
            continue
        lines: tuple[list[str], list[str]] = ([], [])
        for number, folder in enumerate(classes):
            for split, paths in zip(lines, split_class(folder, arguments.test_percent / 100), strict=True):
                split += [f"{path.relative_to(arguments.data_dir).as_posix()} {number}" for path in paths]
        if lines[0]:
            for path, split in zip(lists, lines, strict=True):
                path.write_text("\n".join(split) + "\n", encoding="utf-8")
            print(
                f"{task}: {len(classes)} classes, {len(lines[0])} images to train on, {len(lines[1])} to test"
            )


if __name__ == "__main__":
    main()
