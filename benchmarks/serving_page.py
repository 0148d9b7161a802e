"""Tables and pictures of docs/serving.md, made from the result files of serving."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cwps_jax.report.owners import on_white, series_colours
from cwps_jax.report.page import INK, MARGIN, SHAPES, Flow, Page, dressed, rgb

Result = Mapping[str, Any]
# A ratio of serve_cpu.json, what it is, its aim, and how an aim is judged: -1 at most, 1 at least.
COSTS = (
    ("resident_float32", "bytes on the device over as many full copies, float32", 0.12, -1),
    ("resident_4_bits", "the same in 4 bits", 0.02, -1),
    ("resident_entropy_coded", "the same entropy-coded, all channels in 0.01x on disk", None, 0),
    ("swap_over_forward", "a swap over a forward pass of one picture", 0.05, -1),
    ("copy_over_swap", "a full copy over a swap", 8, 1),
    ("loop_over_mixed_distinct", "a loop over tasks, each kept whole, over the mixed batch", 4.5, 1),
    ("swaps_over_mixed_distinct", "a loop by swaps over the mixed batch", None, 0),
    ("mixed_throughput_distinct", "throughput of the mixed batch over one plain model's", 0.8, 1),
)
PANEL = 2.7, 2.1  # inches of one mix's curves


def costs_table(result: Result) -> str:
    """Returns the table of benchmarks/serve.py."""
    lines = ["| | measured | aim |", "|---|---|---|"]
    for name, what, aim, sign in COSTS:
        value, spread = result["ratios"][name], result["quartiles"].get(name)
        told = f"{value:.3g}" + (" ({:.3g} to {:.3g})".format(*spread) if spread else "")
        goal = "-"
        if aim is not None:
            goal = f"{aim:g}" + (", met" if (value - aim) * sign >= 0 else ", missed")
        lines.append(f"| {what} | {told} | {goal} |")
    settings = result["settings"]
    switches = f"{settings['switches']:,} random switches"
    lines.append(f"| compilations in {switches} | {result['compilations_of_switches']} | 0 |")
    ways = ", ".join(f"{way} for {mix} tasks" for mix, way in result["way"].items())
    lines += ["", f"{_where(result)}, {settings['tasks']} tasks. The bank chose: {ways}."]
    return "\n".join(lines)


def storm_table(result: Result) -> str:
    """Returns the table of scripts/storm_server.py."""
    lines = ["| clients | answers per second | half within | 99% within |", "|---|---|---|---|"]
    for clients, seen in result["calm"].items():
        cells = f"{seen['answers_per_second']:.0f} | {seen['p50_ms']:.0f} ms | {seen['p99_ms']:.0f} ms"
        lines.append(f"| {clients} | {cells} |")
    phases = result["storm"].values()
    refused = sum(sum(seen["refused"].values()) for seen in phases)
    wrong = sum(seen["wrong"] for seen in phases)
    slowest = max(seen["p99_ms"] for seen in phases)
    lines += [
        "",
        f"{result['tasks']} tasks on `{result['backbone']}`, {result['device']}, jax "
        f"{result['versions']['jax']}, commit {result['commit']}. 16 clients sent {result['requests']:,} "
        f"requests. {refused} of them were malformed and refused with their reason, and {wrong} were "
        f"answered wrongly; 99% of the good ones were answered within {slowest:.0f} ms. The "
        f"server's memory changed by {result['resident']['growth']:+.1%} after the first 1,000. "
        f"With 16 clients it had {result['over_bare']:.2f} of the throughput of the bank alone (aim: 0.8).",
    ]
    return "\n".join(lines)


def curves_table(result: Result) -> str:
    """Returns the table of benchmarks/serve_curves.py."""
    rows = result["curves"]
    counts, mixes, ways = (list(dict.fromkeys(row[key] for row in rows)) for key in ("tasks", "mix", "way"))
    found = {(row["tasks"], row["mix"], row["way"]): row for row in rows}
    lines = [
        f"| tasks | way | memory, in full copies | {' | '.join(mixes)} |",
        "|---" * (3 + len(mixes)) + "|",
    ]
    for count in counts:
        for way in ways:
            cells = [f"{found[count, mix, way]['throughput']:.2f}" for mix in mixes]
            memory = f"{found[count, mixes[0], way]['memory']:.2f}"
            lines.append(f"| {count} | {way} | {memory} | {' | '.join(cells)} |")
    chosen = {
        f"{row['chosen']} for {row['mix']}" for row in rows if row["tasks"] == max(counts) and row["chosen"]
    }
    lines += [
        "",
        f"The last columns: throughput over one plain model's, by how the tasks of a request are drawn. "
        f"{_where(result)}{CLOCKS[result['settings']['clock']]}. "
        f"With {max(counts)} tasks the bank chose {', '.join(sorted(chosen))}.",
    ]
    return "\n".join(lines)


def draw_serving(result: Result, folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws the curves of benchmarks/serve_curves.py.

    Args:
        result: its result file.
        folder: where serving_memory.png and serving_throughput.png go.
    """
    rows = result["curves"]
    mixes = list(dict.fromkeys(row["mix"] for row in rows))
    of_mix = {mix: [row for row in rows if row["mix"] == mix] for mix in mixes}
    memory = _drawn(
        "Memory on the device against the number of tasks", result, {"": of_mix[mixes[0]]}, "memory"
    )
    speed = _drawn("Throughput against the number of tasks", result, of_mix, "throughput")
    return [memory.save(folder / "serving_memory.png"), speed.save(folder / "serving_throughput.png")]


CLOCKS = {"wall": "", "processor": ", by the seconds of one core that other processes used too"}
UNITS = {"memory": "in full copies", "throughput": "over one plain model's"}


def _drawn(title: str, result: Result, panels: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> Page:
    ways = list(dict.fromkeys(row["way"] for row in result["curves"]))
    colours = series_colours(ways)
    width, height = PANEL if len(panels) > 1 else (2 * PANEL[0] + 0.7, 3.4)
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    left, top, beside, below = MARGIN + 0.7, 1.1, 0.7, 0.85
    flow = Flow.of(ways, 2 * PANEL[0] + 0.7)
    page = Page(
        left + across * (width + beside) - beside + MARGIN, top + down * (height + below) + flow.height
    )
    settings = result["settings"]
    model = (
        f"{settings['backbone']} at {settings['size']} px, {settings['active']:.0%} of the channels private"
    )
    page.title(title, f"{model}, {settings['batch']} pictures per request, commit {result['commit']}")
    every = [row[key] for rows in panels.values() for row in rows]
    limits = min(every) / 1.2, max(every) * 1.2
    for place, (name, rows) in enumerate(panels.items()):
        x, y = left + place % across * (width + beside), top + place // across * (height + below)
        axes = dressed(page.inset(x, y, width, height))
        page.text(x, y - 0.16, name, 10, weight="bold")
        counts = sorted({row["tasks"] for row in rows})
        for number, way in enumerate(ways):
            values = [row[key] for row in rows if row["way"] == way]
            axes.plot(
                counts, values, f"-{SHAPES[number]}", color=rgb(on_white(colours[way])), markersize=5,
                linewidth=1.4, clip_on=False, zorder=3,
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_ylim(limits)
        axes.xaxis.set_major_locator(FixedLocator(counts))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.set_xlabel("tasks", fontsize=9, color=INK)
        axes.set_ylabel(f"{key}, {UNITS[key]}" if len(panels) == 1 else UNITS[key], fontsize=9, color=INK)
    bottom = top + down * (height + below) - 0.2
    for number, (way, (dx, dy)) in enumerate(zip(ways, flow.places, strict=True)):
        ink = rgb(on_white(colours[way]))
        page.axes.plot([left + dx + 0.07], [bottom + dy], SHAPES[number], color=ink, markersize=6)
        page.text(left + dx + 0.21, bottom + dy, way)
    return page


def _where(result: Result) -> str:
    settings = result["settings"]
    return (
        f"{settings['backbone']} at {settings['size']} px, {settings['active']:.0%} of the channels private, "
        f"{settings['batch']} pictures per request, medians of {settings['repeats']} interleaved turns, "
        f"{result['device']}, jax {result['versions']['jax']}, commit {result['commit']}"
    )


def many_tasks_line(result: Mapping[str, Any]) -> str:
    """Returns what benchmarks/many_tasks.py found."""
    settings, ratios = result["settings"], result["ratios"]
    wall, processor = result["seconds"], result["processor_seconds"]
    took = lambda what: f"{processor[what]:.2g} s"
    return (
        f"{settings['tasks']:,} tasks on {settings['backbone']}, {ratios['stored_over_copies']:.3f}x each on "
        f"disk ({settings['bits']} bits): {result['resident_bytes'] / 1e9:.2f} GB on the device, "
        f"{ratios['resident_over_copies']:.3f} of as many full copies; the process's memory grew by "
        f"{ratios['memory_over_resident']:.2f} times that. Processor time, since the machine was shared: "
        f"opening {processor['open']:.0f} s (it took {wall['open']:.0f} s there), the first answer "
        f"{took('first_answer')} and the first task added again {took('first_add')}, compilation included; "
        f"medians of {settings['repeats']} random tasks: a swap {took('swap')}, an answer for one picture of "
        f"{settings['size']} px after it {took('answer')}, dropping a task {took('drop')}, adding one "
        f"{took('add')}, with {result['compilations']} compilations. "
        f"{settings['checked']} random tasks were equal to `pool.effective` to the bit. "
        f"{result['device']}, commit {result['commit']}."
    )
