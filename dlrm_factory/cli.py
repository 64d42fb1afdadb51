"""Front door of the command line: the script ``dlrm``, and ``torchrun -m dlrm_factory.cli train …``."""

from dlrm_factory.tools.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
