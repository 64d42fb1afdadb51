"""A plan as a picture: one bar a rank, one block a shard, a line at the memory's end."""

from __future__ import annotations

from pathlib import Path

from dlrm_factory.config import format_bytes
from dlrm_factory.errors import PlanError
from dlrm_factory.model.plan import TablePlan

__all__ = ["draw_plan"]

_COLOURS = {
    "table_wise": "#4c78a8",
    "row_wise": "#f58518",
    "column_wise": "#54a24b",
    "data_parallel": "#b279a2",
}
_FORMATS = (".svg", ".png", ".pdf")
_LABELLED_SHARE = 0.04  # of the tallest bar: a lower block has no room for its name


def draw_plan(plan: TablePlan, path: Path) -> None:
    """Draw ``plan`` into ``path``. PlanError for a format that is not .svg, .png or .pdf."""
    if path.suffix.lower() not in _FORMATS:
        raise PlanError(f"{path}: cannot draw this format; use one of {', '.join(_FORMATS)}")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    ranks = plan.hardware.world_size
    tallest = max(plan.rank_bytes()) or 1
    figure, axes = pyplot.subplots(figsize=(max(5.0, 1.6 * ranks + 3.0), 5.5), layout="constrained")
    heights = [0.0] * ranks
    for table in sorted(plan.tables, key=lambda table: -table.bytes):
        for shard in table.shards:
            axes.bar(
                shard.rank,
                shard.bytes,
                bottom=heights[shard.rank],
                width=0.8,
                color=_COLOURS[table.sharding],
                edgecolor="white",
                linewidth=0.8,
            )
            if shard.bytes > _LABELLED_SHARE * tallest:
                middle = heights[shard.rank] + shard.bytes / 2
                label = f"{table.name}\n{table.dtype}, {format_bytes(shard.bytes)}"
                axes.text(shard.rank, middle, label, ha="center", va="center", fontsize=7, color="white")
            heights[shard.rank] += shard.bytes
    memory = plan.hardware.memory
    # A limit far above the tables would press them flat: then it is told in the title alone.
    if memory < 3 * tallest:
        axes.axhline(memory, color="#e45756", linestyle="--", linewidth=1.2)
    axes.set_xticks(
        range(ranks), [f"rank {rank}\nhost {rank // plan.hardware.local_world_size}" for rank in range(ranks)]
    )
    axes.yaxis.set_major_formatter(lambda value, _: format_bytes(value))
    axes.set_title(
        f"{ranks} x {plan.hardware.device}, {format_bytes(memory)} a rank; balance {plan.balance():.2f}",
        fontsize=10,
    )
    used = sorted({table.sharding for table in plan.tables})
    axes.legend(
        handles=[Patch(color=_COLOURS[kind], label=kind) for kind in used],
        loc="upper left",
        bbox_to_anchor=(1, 1),
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
