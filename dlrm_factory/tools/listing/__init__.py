"""Listing of an archive, checked without unpacking it: TorchServe unpacks whatever it is given."""

from dlrm_factory.tools.listing.reading import ArchiveListing, check_listing, read_archive_listing

__all__ = ["ArchiveListing", "check_listing", "read_archive_listing"]
