"""README.md: its tables are current, it is short. Its example runs in test_extras.py."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_its_tables_are_those_of_the_committed_results():
    command = [sys.executable, str(ROOT / "benchmarks" / "render.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_is_short():
    words = re.findall(r"[A-Za-z]\w*", re.sub(r"\]\([^)]*\)", "]", README))
    assert len(words) < 800, "move it to a page in docs/"
