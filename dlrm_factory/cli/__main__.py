"""``python -m dlrm_factory.cli …`` is ``dlrm …``, for ``torchrun -m dlrm_factory.cli train …``."""

from dlrm_factory.cli.main import main

main()
