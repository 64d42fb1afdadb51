"""Checkpoint → staged folder → self-contained archive."""

from dlrm_factory.tools.archive.manifest import check_names
from dlrm_factory.tools.archive.reading import check_archive, read_archive_declaration, unpacked_weights
from dlrm_factory.tools.archive.sealing import ArchiveFormat, archive_model
from dlrm_factory.tools.archive.staging import archiver_command, stage
from dlrm_factory.tools.listing import ArchiveListing, read_archive_listing

__all__ = [
    "ArchiveFormat",
    "ArchiveListing",
    "archive_model",
    "archiver_command",
    "check_archive",
    "check_names",
    "read_archive_declaration",
    "read_archive_listing",
    "stage",
    "unpacked_weights",
]
