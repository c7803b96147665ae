"""A control plane in this process, with its people."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from policies.loader import load_policy
from sandbox.control.access import issue_token
from sandbox.control.app import create_app
from sandbox.control.core import Control, open_control
from sandbox.control.database.engine import Database
from sandbox.control.settings import ControlSettings, Limits
from sandbox.wire import TokenRequest
from tests.control.actors import POLICY, Bundle, Customer, Node, Person, make_bundle
from tests.postgres import PostgresServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette would rather have another HTTP client below its test client
    from starlette.testclient import TestClient


ON_BOTH = {"test_story", "test_lifecycle_server", "test_operator", "test_roles", "test_uploads"}
"""Modules whose tests run on both databases."""
SQLITE_ALONE = {"test_a_full_database_is_told_and_nothing_is_half_done"}
"""What is about SQLite itself."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a house's tests on both databases where that can make a difference."""
    if metafunc.function.__name__ in SQLITE_ALONE:
        return
    if "house" in metafunc.fixturenames and metafunc.module.__name__.rpartition(".")[2] in ON_BOTH:
        metafunc.parametrize("house", ["sqlite", "postgres"], indirect=True)


@dataclass
class Clock:
    """The real time, moved forward at will."""

    ahead: timedelta = field(default_factory=timedelta)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass
class House:
    """A control plane and how to get people for it."""

    control: Control
    http: TestClient
    clock: Clock
    folder: Path

    def token(self, role: str, tenant: str) -> str:
        return issue_token(self.control, TokenRequest(role=role, tenant=tenant), actor="server").token

    def person(self, role: str, tenant: str = "operator") -> Person:
        return Person(self.http, self.token(role, tenant), tenant)

    def customer(self, tenant: str = "lab") -> Customer:
        return Customer(self.http, self.token("customer", tenant), tenant).enrol()

    def node(self, **capacity: object) -> Node:
        node = Node(self.http, self.token("node", "operator"), "operator")
        assert node.register(**capacity).status_code == 200
        return node

    def bundle(self, customer: Customer, content: bytes = b"weights") -> Bundle:
        bundle = make_bundle(self.folder, customer.identity, content)
        customer.upload(bundle.raw, bundle.digest)
        return bundle


def open_house(stack: ExitStack, folder: Path, limits: Limits | None = None, store: str = "", database: str = "") -> House:
    clock = Clock()
    settings = ControlSettings(data=folder / "data", policy=load_policy(POLICY), limits=limits or Limits(), store=store, database=database)
    control = stack.enter_context(open_control(settings, now=clock))
    http = stack.enter_context(TestClient(create_app(control), base_url="http://server"))
    return House(control, http, clock, folder)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in RAM where there is one: the server syncs every step to disk, and a hundred tests would wait for it."""
    ram = Path("/dev/shm")
    if not os.access(ram, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(prefix="sealrig-test-", dir=ram) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def migrated(postgres: PostgresServer) -> str:
    """A PostgreSQL database with the tables in it, to be copied: ten times faster than migrating anew."""
    name = postgres.create()
    database = Database(postgres.url(name).replace("postgresql:", "postgresql+psycopg:"))
    database.migrate()
    database.close()
    return name


@pytest.fixture
def house(request: pytest.FixtureRequest, folder: Path) -> Iterator[House]:
    """A control plane on SQLite, and in the modules of ``ON_BOTH`` once more on PostgreSQL."""
    database = ""
    if getattr(request, "param", "sqlite") == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        name = server.create(template=request.getfixturevalue("migrated"))
        database = server.url(name).replace("postgresql:", "postgresql+psycopg:")
    with ExitStack() as stack:
        yield open_house(stack, folder, database=database)
