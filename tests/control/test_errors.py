"""Every error class has its status and its own code, and answers never say more than they should."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy.exc import OperationalError

import attestation.errors
import attestation.log.errors
import attestation.merkle
import policies.errors
from attestation.log.reader import LogReader
from sandbox.control.api.problems import problem, status_of
from sandbox.control.errors import StorageError, StorageFullError, storage_error
from sandbox.errors import SealrigError
from tests.control.actors import code
from tests.control.conftest import House


def all_of(base: type[Exception]) -> list[type[Exception]]:
    return [
        base,
        *(
            each
            for child in base.__subclasses__()
            if child.__module__.partition(".")[0] in {"sandbox", "attestation", "policies"}
            for each in all_of(child)
        ),
    ]


EVERY = [each for base in (SealrigError, attestation.errors.AttestationError, policies.errors.PolicyError) for each in all_of(base)]


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_and_a_code(kind: type[Exception]) -> None:
    made = kind.__new__(kind)
    made.args = ("message",)
    status, word = status_of(made)
    assert word == kind.code
    assert 400 <= status <= 599
    assert problem(status, word, "title").status_code == status


def test_codes_name_one_class_within_each_package() -> None:
    for package in ("sandbox", "attestation", "policies"):
        own = [kind for kind in EVERY if kind.__module__.startswith(package) and "code" in vars(kind)]
        codes = [kind.code for kind in own]
        assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [
        (OSError(28, "No space left on device"), StorageFullError),
        (OSError(122, "Disk quota exceeded"), StorageFullError),
        (OSError(5, "I/O error", "/secret/path"), StorageError),
        (sqlite3.OperationalError("database or disk is full"), StorageFullError),
        (OperationalError("INSERT secret", {}, sqlite3.OperationalError("disk I/O error")), StorageError),
    ],
)
def test_storage_faults(fault: Exception, wanted: type[StorageError]) -> None:
    error = storage_error(fault, "the disk")
    assert type(error) is wanted
    assert "secret" not in f"{error} {error.details}"


def test_what_nobody_foresaw_is_told_without_its_inside(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr("sandbox.control.access.list_tokens", broken)
    operator = house.person("operator")
    house.http._transport.raise_server_exceptions = False
    answer = operator.get("/v1/tokens")
    assert (answer.status_code, code(answer)) == (500, "internal")
    assert "secret" not in answer.text


def test_a_log_that_cannot_be_read_is_told_without_paths(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise attestation.log.errors.LogFetchError("cannot read /secret/path", seen="/secret/path")

    monkeypatch.setattr(LogReader, "from_dir", broken)
    monkeypatch.setattr("sandbox.control.access.list_tokens", broken)
    answer = house.person("operator").get("/v1/tokens")
    assert (answer.status_code, code(answer)) == (503, "log-fetch")
    assert "secret" not in answer.text
