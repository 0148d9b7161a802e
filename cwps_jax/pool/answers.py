"""The verbs that use a stored task: predict, evaluate, export."""

import argparse
import csv
import json
import os
import pathlib
import sys
from typing import Any

from rich.table import Table

from cwps_jax.config import RunConfig
from cwps_jax.errors import CwpsError
from cwps_jax.extras import check_extra
from cwps_jax.pool.output import print_json, print_line, print_table
from cwps_jax.serve import evaluate, export, given_images, learned_with, predict
from cwps_jax.serve.images import image_files
from cwps_jax.store import Pool

VERBS = ("predict", "evaluate", "export")


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Adds the verbs of this file to the command line's."""
    one = verbs.add_parser("predict", parents=[common], help="what a task answers for images")
    one.add_argument("task", metavar="TASK")
    one.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders, patterns, or - for stdin")
    one.add_argument("--top", type=_positive, default=1, help="classes an image, most probable first")
    one.add_argument("--batch", type=_positive, default=0, help="images a batch; by default as in training")
    one.add_argument("--contact-sheet", type=pathlib.Path, help="PNG of the pictures with their answers")
    one.set_defaults(run=_predict)
    one = verbs.add_parser("evaluate", parents=[common], help="how a task does on images of known classes")
    one.add_argument("task", metavar="TASK")
    one.add_argument("data", metavar="DATA", nargs="?", help="folder of class folders; else its test data")
    one.add_argument("--batch", type=_positive, default=0, help="images a batch; by default as in training")
    one.add_argument("--confusion", type=pathlib.Path, help="PNG of what was taken for what")
    one.set_defaults(run=_evaluate)
    one = verbs.add_parser("export", parents=[common], help="a task's network as one file for others")
    one.add_argument("task", metavar="TASK")
    one.add_argument("file", metavar="FILE", help="*.safetensors; or *.stablehlo.zip, run by JAX alone")
    one.add_argument("--keys", help="key names of weights, torchvision or timm; else the backbone's own")
    one.set_defaults(run=_export)


def _predict(pool: Pool, given: argparse.Namespace) -> None:
    known = learned_with(pool, given.task)
    paths = [one for path in given.images for one in (_standard_input() if path == "-" else [path])]
    files = image_files(paths)
    _check_picture(given.contact_sheet)
    split = given_images(known, files)
    _remember_programs()
    found = predict(pool, given.task, split, batch_size=given.batch)
    answers = found.top(given.top)
    if given.contact_sheet:
        from cwps_jax.report.contact_sheet import draw_contact_sheet

        best = [f"{name} {share:.0%}" for ((name, share), *_) in answers]
        draw_contact_sheet(split, [os.path.basename(file) for file in files], best, given.contact_sheet)
    if given.json:
        for file, top in zip(files, answers, strict=True):
            classes = [{"class": name, "probability": share} for name, share in top]
            print(json.dumps({"image": file, "top": classes}, ensure_ascii=False))
        return
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(("image", "rank", "class", "probability"))
    for file, top in zip(files, answers, strict=True):
        rows.writerows((file, rank, name, f"{share:.6f}") for rank, (name, share) in enumerate(top, 1))


def _evaluate(pool: Pool, given: argparse.Namespace) -> None:
    _check_picture(given.confusion)
    _remember_programs()
    found = evaluate(pool, given.task, given.data, batch_size=given.batch)
    if given.confusion:
        from cwps_jax.report.confusion_picture import draw_confusion

        draw_confusion(found.confusion, found.class_names, given.task, given.confusion)
    if given.json:
        return print_json(
            {
                "task": given.task,
                "accuracy": found.metric,
                "images": int(found.confusion.sum()),
                "per_class": found.per_class,
                "confusion": found.confusion.tolist(),
            }
        )
    table = Table(title=f"{given.task}: accuracy {found.metric:.2%} of {found.confusion.sum():,} images")
    table.add_column("class", overflow="fold")
    for column in ("images", "recognised"):
        table.add_column(column, justify="right")
    table.add_column("most often taken for", overflow="fold")
    for number, (name, share) in enumerate(found.per_class.items()):
        row = found.confusion[number].copy()
        count, row[number] = int(row.sum()), 0
        mistaken = f"{found.class_names[row.argmax()]} ({row.max()})" if row.any() else ""
        table.add_row(name, f"{count:,}", "-" if share is None else f"{share:.1%}", mistaken)
    print_table(table)
    if given.confusion:
        print_line(f"Picture: {given.confusion}")


def _export(pool: Pool, given: argparse.Namespace) -> None:
    export(pool, given.task, given.file, keys=given.keys)
    if given.json:
        return print_json({"task": pool.version(given.task).name, "file": given.file})
    print_line(f"{pool.version(given.task).name}: {given.file}")


def _standard_input() -> list[str]:
    return [line for line in sys.stdin.read().splitlines() if line]


def _check_picture(file: pathlib.Path | None) -> None:
    """Raises CwpsError, before the work, for a picture that could not be written after it."""
    if file and file.suffix != ".png":
        raise CwpsError(f"{file}: pictures are PNG files; name it *.png")
    if file:
        check_extra("report", f"{file}, a picture,")
    if file and not file.absolute().parent.is_dir():
        raise CwpsError(f"{file}: no such folder: {file.parent}; make it first")


def _remember_programs() -> None:
    """Compiled programs are kept where a run of main keeps its own, unless JAX was told another place."""
    import jax

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        folder = os.path.expanduser(RunConfig.compilation_cache)
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)
