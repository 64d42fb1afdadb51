"""Weights of other makers → a checkpoint: state dicts, checkpoint folders, dlrm_s_pytorch files, safetensors."""

from dlrm_factory.tools.importing.opening import SourceFormat
from dlrm_factory.tools.importing.run import (
    ImportReport,
    first_declaration,
    first_declaration_text,
    import_weights,
)

__all__ = ["ImportReport", "SourceFormat", "first_declaration", "first_declaration_text", "import_weights"]
