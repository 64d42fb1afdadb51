"""Start of the process beside a server: ``python -m dlrm_factory.tools.sidecar RUN_DIR``."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlrm_factory.tools.sidecar.supervising import detach, supervise

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="dlrm_factory.tools.sidecar")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--child", action="store_true")
    arguments = parser.parse_args()
    if arguments.child:
        from dlrm_factory.tools.sidecar.main import run

        run(arguments.run_dir)
    else:
        detach()
        supervise(arguments.run_dir)
