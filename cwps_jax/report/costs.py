"""The table of a profiled run: the cost of a step of every stage."""

from rich.console import Console
from rich.table import Table

from cwps_jax.profiling import Profiler


def show_costs(profiler: Profiler, console: Console) -> None:
    """Prints a row per stage, and how to open the traces; one line if nothing was trained."""
    if not profiler.costs:
        console.print("Nothing was trained, so nothing was profiled.", highlight=False)
        return
    table = Table(title="One step on one device", title_justify="left")
    for column in ("method", "stage"):
        table.add_column(column, no_wrap=True)
    for column in ("ms", "FLOPs", "bytes", "peak memory", "FLOP/s", "bytes/s", "MFU"):
        table.add_column(column, justify="right", no_wrap=True)
    for cost in profiler.costs:
        table.add_row(
            cost.method,
            cost.stage,
            f"{1000 * cost.seconds:.4g}",
            short(cost.flops),
            short(cost.bytes_accessed),
            short(cost.peak_bytes),
            short(cost.flops_per_second),
            short(cost.bytes_per_second),
            profiler.no_peak or _percent(cost.mfu),
        )
    console.print(table)
    console.print(
        f"Traces: tensorboard --logdir {profiler.folder} (with its profile plugin), or open a "
        f"perfetto_trace.json.gz of it at ui.perfetto.dev; the figures: {profiler.folder / 'steps.json'}",
        soft_wrap=True,
        highlight=False,
    )


def short(value: float | None) -> str:
    """Returns a number to three digits: "1.23 M", "-" for None."""
    if value is None:
        return "-"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"
