"""A plan as a picture: one bar a rank, one block a shard, a line at the memory's end; below, the rows read a sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrm_factory.config import format_bytes
from dlrm_factory.errors import PlanError
from dlrm_factory.model.plan import PlacedTable, TablePlan

if TYPE_CHECKING:
    from dlrm_factory.ranks.traffic import Traffic

__all__ = ["draw_plan"]

_COLOURS = {
    "table_wise": "#4c78a8",
    "row_wise": "#f58518",
    "column_wise": "#54a24b",
    "data_parallel": "#b279a2",
}
_FORMATS = (".svg", ".png", ".pdf")
_LABELLED_SHARE = 0.06  # of the tallest bar: a lower block has no room for its name
_EDGED_SHARE = 0.01  # a lower one would be all edge
_MAX_LABELLED = 8  # ranks whose blocks are wide enough for names
_WIDTH = (6.4, 12.8)  # inches, the least and the most


def draw_plan(plan: TablePlan, path: Path, traffic: Mapping[str, Traffic] | None = None) -> None:
    """Draw ``plan`` into the file ``path``: .svg, .png or .pdf.

    One bar a rank, one block a shard, in bytes, and the rows that a sample reads on each rank; ``traffic`` between
    ``ranks`` and ``hosts`` is told below. PlanError for another format.
    """
    if path.suffix.lower() not in _FORMATS:
        raise PlanError(f"{path}: cannot draw this format; use one of {', '.join(_FORMATS)}")
    from matplotlib.figure import Figure

    ranks = plan.hardware.world_size
    width = min(max(_WIDTH[0], 1.2 * ranks + 1.5), _WIDTH[1])
    figure = Figure(figsize=(width, 6.6), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    _draw_bytes(above, plan)
    below.bar(range(ranks), plan.rank_lookups(), width=0.8, color="#72b7b2")
    below.set_ylabel("rows read\na sample")
    below.set_xticks(*_ticks(plan))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    lines = [f"between {name}: {_told(each)}" for name, each in (traffic or {}).items()] if ranks > 1 else []
    figure.supxlabel("\n".join(lines), fontsize=8)
    used = sorted({table.sharding for table in plan.tables})
    figure.legend(
        handles=_patches(used), loc="outside upper center", ncols=len(used), frameon=False, fontsize=9
    )
    figure.savefig(path, dpi=120)


def _draw_bytes(axes: Any, plan: TablePlan) -> None:
    tallest = max(plan.rank_bytes()) or 1
    heights = [0.0] * plan.hardware.world_size
    for table in sorted(plan.tables, key=lambda table: -table.bytes):
        for shard in table.shards:
            axes.bar(
                shard.rank,
                shard.bytes,
                bottom=heights[shard.rank],
                width=0.8,
                color=_COLOURS[table.sharding],
                edgecolor="white",
                linewidth=0.8 if shard.bytes > _EDGED_SHARE * tallest else 0,
            )
            if shard.bytes > _LABELLED_SHARE * tallest and len(heights) <= _MAX_LABELLED:
                middle = heights[shard.rank] + shard.bytes / 2
                axes.text(
                    shard.rank,
                    middle,
                    _label(table, shard.bytes),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white",
                )
            heights[shard.rank] += shard.bytes
    memory = plan.hardware.memory
    # A limit far above the tables would press them flat: then it is told in the title alone.
    if memory < 3 * tallest:
        axes.axhline(memory, color="#e45756", linestyle="--", linewidth=1.2)
    axes.yaxis.set_major_formatter(lambda value, _: format_bytes(value))
    axes.set_title(
        f"{plan.hardware.world_size} x {plan.hardware.device}, {format_bytes(memory)} a rank; "
        f"balance {plan.balance():.2f}",
        fontsize=10,
    )


def _label(table: PlacedTable, size: int) -> str:
    return f"{table.name}\n{table.dtype}, {format_bytes(size)}"


def _ticks(plan: TablePlan) -> tuple[list[int], list[str]]:
    """Ranks that are named, with their hosts; of many the first of each host, or some of these."""
    local = plan.hardware.local_world_size
    if plan.hardware.world_size <= _MAX_LABELLED:
        named = list(range(plan.hardware.world_size))
        return named, [f"rank {rank}\nhost {rank // local}" for rank in named]
    hosts = range(0, plan.hardware.hosts, -(-plan.hardware.hosts // _MAX_LABELLED))
    return [host * local for host in hosts], [f"rank {host * local}\nhost {host}" for host in hosts]


def _told(traffic: Traffic) -> str:
    return (
        f"{traffic.total:,.0f} bytes a sample (ids {traffic.ids:,.0f}, dense {traffic.dense:,.0f}, "
        f"vectors {traffic.vectors:,.0f}, logits {traffic.logits:,.0f})"
    )


def _patches(used: list[str]) -> list[Any]:
    from matplotlib.patches import Patch

    return [Patch(color=_COLOURS[kind], label=kind) for kind in used]
