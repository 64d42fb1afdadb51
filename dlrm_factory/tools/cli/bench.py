"""``dlrm bench``: the benchmarks, each in a module of its own."""

from __future__ import annotations

import typer

from dlrm_factory.tools.cli.bench_decode import decode
from dlrm_factory.tools.cli.bench_handle import handle
from dlrm_factory.tools.cli.bench_http import http
from dlrm_factory.tools.cli.bench_memory import memory
from dlrm_factory.tools.cli.bench_ranks import ranks
from dlrm_factory.tools.cli.bench_score import score

__all__ = ["bench"]

bench = typer.Typer(help="Measure the server, the workers' memory and the parts.", no_args_is_help=True)
for _command in (decode, score, handle, http, memory, ranks):
    bench.command()(_command)
