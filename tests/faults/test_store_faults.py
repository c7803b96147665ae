"""A bundle store that fails at each call, or does its work and then fails: told as what it is, and mended by asking again."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from sandbox.control.bundles import collect_garbage
from sandbox.control.store import Reading
from sandbox.control.upload_sweep import sweep_uploads
from sandbox.errors import SealrigError
from tests.control.actors import TUS, Bundle, Customer, code, make_bundle
from tests.control.conftest import House, folder, open_house
from tests.control.test_store import s3_settings

__all__ = ["folder"]
SIZE = 3_000_000


class Faults:
    """A store around the real one: the ``number``-th call of ``name`` fails, before or after it has done its work."""

    def __init__(self, house: House) -> None:
        self.inner = house.control.store
        self.name, self.when, self.number = "", "", 0
        self.failed = 0
        object.__setattr__(house.control, "store", self)

    def arm(self, name: str, when: str, number: int = 1) -> None:
        """Fail once."""
        self.name, self.when, self.number, self.failed = name, when, number, 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.inner, name)

        def call(*arguments: Any) -> Any:
            hit = False
            if name == self.name:
                self.number -= 1
                hit = self.number == 0
            if hit and self.when == "before":
                self.failed += 1
                raise OSError(errno.EIO, "no answer")
            answer = real(*arguments)
            if hit:
                self.failed += 1
                if self.when == "midway":
                    return self._cut(answer)
                raise OSError(errno.EIO, "an answer that got lost")
            return answer

        return call

    @staticmethod
    def _cut(pieces: Reading) -> Iterator[bytes]:
        with closing(pieces):
            yield next(pieces)
            raise OSError(errno.EIO, "cut off")


@pytest.fixture(params=["folder", "s3"])
def house(request: pytest.FixtureRequest, folder: Path) -> Iterator[House]:
    store = ""
    if request.param == "s3":
        (folder / "data").mkdir()
        store = s3_settings(folder / "data", request.getfixturevalue("s3_endpoint")).store
    with ExitStack() as stack:
        yield open_house(stack, folder, store=store)


@pytest.fixture
def customer(house: House) -> Customer:
    return house.customer()


@pytest.fixture
def bundle(house: House, customer: Customer) -> Bundle:
    return make_bundle(house.folder, customer.identity, os.urandom(SIZE))


def stored(house: House) -> list[str]:
    return list(house.control.store.digests())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failed_put_is_mended_by_asking_again(house: House, customer: Customer, bundle: Bundle, when: str) -> None:
    faults = Faults(house)
    place = customer.start_upload(bundle.digest, len(bundle.raw)).headers["location"]
    faults.arm("put", when)
    answer = customer.send(place, 0, bundle.raw)
    assert (answer.status_code, code(answer), faults.failed) == (503, "storage-unavailable", 1)
    assert customer.call("HEAD", place, headers=TUS).headers["upload-offset"] == str(len(bundle.raw))
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw
    assert stored(house) == [bundle.digest]
    assert list(house.control.settings.uploads_folder.iterdir()) == []


def test_a_failed_read_is_told_and_the_next_one_reads(house: House, customer: Customer, bundle: Bundle) -> None:
    customer.upload(bundle.raw, bundle.digest)
    faults = Faults(house)
    faults.arm("read", "before")
    place = f"/v1/bundles/{bundle.digest}/content"
    answer = customer.get(place, headers={"Range": "bytes=0-99"})
    assert (answer.status_code, code(answer)) == (503, "storage-unavailable")
    assert customer.get(place, headers={"Range": "bytes=0-99"}).content == bundle.raw[:100]


def test_a_read_cut_off_midway_is_a_broken_answer_and_no_short_one(house: House, customer: Customer, bundle: Bundle) -> None:
    customer.upload(bundle.raw, bundle.digest)
    faults = Faults(house)
    faults.arm("read", "midway")
    with pytest.raises((OSError, RuntimeError)):  # what ends the connection: the answer has begun and cannot become a refusal
        customer.get(f"/v1/bundles/{bundle.digest}/content")
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failed_delete_is_made_good_by_the_next_sweep(house: House, customer: Customer, bundle: Bundle, when: str) -> None:
    customer.upload(bundle.raw, bundle.digest)
    faults = Faults(house)
    faults.arm("delete", when)
    answer = customer.delete(f"/v1/bundles/{bundle.digest}")
    assert (answer.status_code, code(answer)) == (503, "storage-unavailable")
    assert code(customer.get(f"/v1/bundles/{bundle.digest}")) == "not-found"
    collect_garbage(house.control)
    assert stored(house) == []
    customer.upload(bundle.raw, bundle.digest)
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_sweep_that_fails_is_done_by_the_next(house: House, customer: Customer, bundle: Bundle, when: str) -> None:
    faults = Faults(house)
    place = customer.start_upload(bundle.digest, len(bundle.raw)).headers["location"]
    faults.arm("put", "before")
    customer.send(place, 0, bundle.raw)
    faults.arm("put", when)
    with pytest.raises(SealrigError):
        sweep_uploads(house.control)
    sweep_uploads(house.control)
    assert stored(house) == [bundle.digest]


def test_a_store_that_cannot_be_reached_is_not_ready(house: House) -> None:
    faults = Faults(house)
    faults.arm("check", "before")
    assert house.http.get("/readyz").status_code == 503
    assert house.http.get("/readyz").status_code == 200


def test_the_same_bundle_pushed_by_many_at_once_is_stored_once(house: House, customer: Customer, bundle: Bundle) -> None:
    works = house.customer("works")
    pushers = [customer, works, customer, works]
    places = [each.start_upload(bundle.digest, len(bundle.raw)).headers["location"] for each in pushers]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda pair: pair[0].send(pair[1], 0, bundle.raw), zip(pushers, places, strict=True)))
    assert [answer.status_code for answer in answers] == [204] * 4
    assert stored(house) == [bundle.digest]
    for each in (customer, works):
        assert each.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw
    assert customer.delete(f"/v1/bundles/{bundle.digest}").status_code == 204
    assert stored(house) == [bundle.digest]
    assert works.delete(f"/v1/bundles/{bundle.digest}").status_code == 204
    assert stored(house) == []
