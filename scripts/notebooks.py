"""Runs the notebooks of examples/notebooks/ and keeps what they print and draw in them: `make notebooks`.

    python scripts/notebooks.py [name ...]

Each runs in a kernel of its own, in an empty folder, so that its outputs are of a first run. Beside them it
keeps the SHA-256 of the code that gave them, by which a test sees outputs that are out of date.
"""

import hashlib
import json
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "examples" / "notebooks"
KEY = "code_sha256"  # of a notebook's metadata
LONGEST = 1800  # seconds that a cell may take


def code_of(notebook: Mapping[str, Any]) -> list[str]:
    """Returns the source of each code cell of a notebook, as it is stored or as nbformat reads it."""
    cells = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return ["".join(source) for source in cells]


def code_sha256(notebook: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of all code cells."""
    return hashlib.sha256(json.dumps(code_of(notebook)).encode()).hexdigest()


def main(names: Sequence[str]) -> None:
    """Runs the named notebooks, or all of them, and writes them with their outputs."""
    import nbclient
    import nbformat

    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            client = nbclient.NotebookClient(
                notebook, timeout=LONGEST, record_timing=False, coalesce_streams=True, resources=resources
            )
            client.execute()
        notebook.metadata = {key: notebook.metadata[key] for key in ("kernelspec",)}
        notebook.metadata["language_info"] = {"name": "python"}  # without the version of this machine
        notebook.metadata[KEY] = code_sha256(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
