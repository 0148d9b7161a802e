"""How the verbs print: JSON, or tables of rich."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table


def print_json(values: Any) -> None:
    """Prints values as indented JSON."""
    print(json.dumps(values, indent=1, ensure_ascii=False))


def print_table(table: Table) -> None:
    """Prints a table as wide as the terminal; a file or pipe has no width of its own."""
    table.title_justify = "left"
    # Names are a user's: brackets and colons in them are no markup.
    Console(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False, highlight=False).print(
        table
    )


def print_line(text: str) -> None:
    """Prints a line of text as it is, whatever brackets are in it."""
    print(text)
