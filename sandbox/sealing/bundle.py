"""Sealed bundles, for the rest of the program: seal, open, read in place, and get at a bundle's data key."""

from __future__ import annotations

from sandbox.sealing.entries import Entry, Kind
from sandbox.sealing.format import Header, read_header
from sandbox.sealing.hashing import Progress, bundle_digest
from sandbox.sealing.keys import DataKey
from sandbox.sealing.opener import OpenResult, open_bundle
from sandbox.sealing.reader import BundleReader, Limits, data_key
from sandbox.sealing.source import FileSource, RangeSource, Source
from sandbox.sealing.writer import SealResult, seal

__all__ = [
    "BundleReader",
    "DataKey",
    "Entry",
    "FileSource",
    "Header",
    "Kind",
    "Limits",
    "OpenResult",
    "Progress",
    "RangeSource",
    "SealResult",
    "Source",
    "bundle_digest",
    "data_key",
    "open_bundle",
    "read_header",
    "seal",
]
