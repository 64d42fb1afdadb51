"""Start of the process beside a server: ``python -m dlrm_factory.tools.sidecar RUN_DIR [--host H --port P]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlrm_factory.tools.sidecar.supervising import detach, supervise

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="dlrm_factory.tools.sidecar")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int)
    parser.add_argument("--child", action="store_true")
    arguments = parser.parse_args()
    if arguments.child:
        from dlrm_factory.tools.sidecar.main import run

        run(arguments.run_dir, arguments.host, arguments.port)
    else:
        detach()
        supervise(arguments.run_dir)
