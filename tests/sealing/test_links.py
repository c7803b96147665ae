"""Hard links are known by their inodes, and remembered no longer than there may be more of them."""

from __future__ import annotations

import os

from sandbox.sealing.bundle import BundleReader, FileSource, seal
from sandbox.sealing.entries import Kind
from sandbox.sealing.links import HardLinks


def _named(folder, name, others):
    path = folder / name
    path.touch()
    for other in others:
        os.link(path, folder / other)


def test_every_name_but_the_first_is_a_link_to_the_first(tmp_path):
    _named(tmp_path, "a", ["d", "e"])
    _named(tmp_path, "b", ["c"])
    _named(tmp_path, "f", [])
    links = HardLinks()
    found = {name: links.first(os.fsencode(name), (tmp_path / name).stat()) for name in "abcdef"}
    assert found == {"a": None, "b": None, "c": b"b", "d": b"a", "e": b"a", "f": None}


def test_a_file_is_forgotten_when_its_last_name_was_seen(tmp_path):
    _named(tmp_path, "a", ["b", "z"])
    links = HardLinks()
    held = []
    for name in "abz":
        links.first(os.fsencode(name), (tmp_path / name).stat())
        held.append(len(links))
    assert held == [1, 1, 0]


def test_names_elsewhere_change_nothing(tmp_path, alice):
    (tmp_path / "src").mkdir()
    _named(tmp_path / "src", "a", ["b", "../elsewhere", "../there"])
    _named(tmp_path / "src", "c", ["../everywhere"])
    seal([tmp_path / "src"], tmp_path / "sealed", recipients=[alice.public], signer=alice.signing_key)
    with FileSource(tmp_path / "sealed") as source:
        entries = BundleReader(source, alice).entries()
    assert [(entry.path, entry.kind, entry.target) for entry in entries.values()] == [
        (b"a", Kind.FILE, b""), (b"b", Kind.LINK, b"a"), (b"c", Kind.FILE, b""),
    ]  # fmt: skip
