"""One question, one answer: the log of a live server, a copied folder, the server's own index and the console agree on every filter."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest
import uvicorn

from sandbox.cli import main
from sandbox.control import search as search_module
from sandbox.control.app import create_app
from tests.control.actors import ok, walk
from tests.control.conftest import House, open_house
from tests.control.test_story import admitted
from tests.patience import eventually


@dataclass
class Scene:
    """A server that listens, a copy of its log, and what stands in it."""

    house: House
    url: str
    copy: Path
    rows: list[dict]
    token: str

    @property
    def lease(self) -> str:
        return next(row["resource"] for row in self.rows if row["type"] == "lease.running")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("audit")
    with ExitStack() as stack:
        with ExitStack() as first:
            house = open_house(first, folder)
            lab, works, node = house.customer("lab"), house.customer("works"), house.node()
            walk(lab, node, admitted(house, lab), "closed")
        assert main(["audit", "rotate-key", "--data", str(folder / "data")]) == 0
        house = open_house(stack, folder)
        lab.http = works.http = node.http = house.http
        house.clock.ahead += timedelta(minutes=40)
        walk(works, node, admitted(house, works), "closed")
        house.clock.ahead -= timedelta(minutes=50)  # the clock is set back: times do not rise with the log
        ok(works.post(f"/v1/leases/{admitted(house, works)}/cancel"))
        ok(house.person("operator").post(f"/v1/nodes/{node.id}/quarantine"))
        token = house.token("auditor", "audit")
        server = uvicorn.Server(uvicorn.Config(create_app(house.control), host="127.0.0.1", port=0, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run)
        thread.start()
        eventually(lambda: server.started)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        shutil.copytree(folder / "data" / "log", folder / "copy")
        answer = httpx.get(f"{url}/v1/log/entries", params={"limit": 500}, headers={"Authorization": f"Bearer {token}"}).json()
        yield Scene(house, url, folder / "copy", answer["entries"], token)
        server.should_exit = True
        thread.join()


def middle(scene: Scene) -> str:
    moments = sorted(datetime.fromisoformat(row["at"]) for row in scene.rows)
    return moments[len(moments) // 2].isoformat(timespec="milliseconds")


FILTERS: dict[str, Callable[[Scene], dict[str, str]]] = {
    "none": lambda scene: {},
    "type": lambda scene: {"type": "lease.closed"},
    "a type that no server logs": lambda scene: {"type": "log.key-rotated"},
    "types": lambda scene: {"type": "lease.*"},
    "actor": lambda scene: {"actor": "server"},
    "tenant": lambda scene: {"tenant": next(row["tenant"] for row in scene.rows if row["type"] == "lease.cancelled")},
    "node": lambda scene: {"node": next(row["resource"] for row in scene.rows if row["type"] == "node.registered")},
    "lease": lambda scene: {"lease": scene.lease},
    "outcome": lambda scene: {"outcome": "succeeded"},
    "since": lambda scene: {"since": middle(scene)},
    "until": lambda scene: {"until": middle(scene)},
    "both times": lambda scene: {"since": middle(scene), "until": "2999-01-01T00:00:00+00:00"},
    "text: an id": lambda scene: {"text": scene.rows[7]["id"]},
    "text: a thing": lambda scene: {"text": scene.lease},
    "text: a digest": lambda scene: {"text": next(row["evidence"] for row in scene.rows if row["evidence"])},
    "text: part of one": lambda scene: {"text": scene.lease[9:25]},
    "text: a media type": lambda scene: {"text": "vnd.dsse"},
    "text: nowhere": lambda scene: {"text": "nobody"},
    "several": lambda scene: {"lease": scene.lease, "type": "lease.*", "since": "2020-01-01T00:00:00+00:00", "outcome": "done"},
    "a contradiction": lambda scene: {"lease": scene.lease, "type": "node.registered"},
}


def cli(capsys: pytest.CaptureFixture[str], place: str, filters: dict[str, str]) -> list[int]:
    words = [word for name, value in filters.items() for word in (f"--{name}", value)]
    assert main(["audit", "list", "--log", place, "--limit", "500", "--json", *words]) == 0
    return [row["index"] for row in json.loads(capsys.readouterr().out)["entries"]]


def api(scene: Scene, filters: dict[str, str], limit: int = 500) -> list[int]:
    found: list[int] = []
    start: int | None = 0
    while start is not None:
        params = {**filters, "limit": limit, "start": start}
        answer = httpx.get(f"{scene.url}/v1/log/entries", params=params, headers={"Authorization": f"Bearer {scene.token}"})
        answer.raise_for_status()
        found += [row["index"] for row in answer.json()["entries"]]
        start = answer.json()["next"]
    return found[::-1]


def console(scene: Scene, filters: dict[str, str]) -> list[int]:
    fields = {name: value.split("+")[0] if name in {"since", "until"} else value for name, value in filters.items()}
    found: list[int] = []
    with httpx.Client(base_url=scene.url) as http:
        http.post("/login", data={"token": scene.token})
        page = "/audit?" + str(httpx.QueryParams(fields))
        while page:
            text = http.get(page).raise_for_status().text
            found += map(int, re.findall(r'href="/audit/(\d+)">', text))
            older = re.search(r'href="([^"]+)" rel="next"', text)
            page = older[1].replace("&amp;", "&") if older else ""
    return found


@pytest.mark.parametrize("name", FILTERS)
def test_every_place_gives_the_same_answer(scene: Scene, capsys: pytest.CaptureFixture[str], name: str) -> None:
    filters = FILTERS[name](scene)
    wanted = cli(capsys, str(scene.copy), filters)
    assert wanted == sorted(wanted, reverse=True)
    assert bool(wanted) is (name not in {"text: nowhere", "a contradiction"})
    assert cli(capsys, scene.url, filters) == wanted
    assert api(scene, filters) == wanted
    assert console(scene, filters) == wanted


@pytest.mark.parametrize("name", FILTERS)
def test_small_pages_and_little_time_lose_nothing(
    scene: Scene, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    filters = FILTERS[name](scene)
    wanted = cli(capsys, str(scene.copy), filters)
    assert api(scene, filters, limit=3) == wanted
    monkeypatch.setattr(search_module, "_FIRST_RANGE", 2)
    monkeypatch.setattr(search_module, "PAGE_SECONDS", 0.0)
    assert api(scene, filters) == wanted
    assert console(scene, filters) == wanted


@pytest.mark.parametrize("form", ["jsonl", "ocsf", "cef"])
def test_exports_and_proofs_are_the_same_bytes(scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    told = []
    for number, place in enumerate((scene.url, str(scene.copy))):
        words = ("-o", str(tmp_path / f"{number}.{form}"), "--lease", scene.lease, "--json")
        assert main(["audit", "export", "--log", place, "--format", form, *words]) == 0
        assert main(["audit", "prove", "5", "--log", place, "-o", str(tmp_path / f"{number}.proof"), "--json"]) == 0
        assert main(["audit", "show", "5", "--log", place]) == 0
        told.append(capsys.readouterr().out.replace(f"{number}.proof", "").replace(f"{number}.{form}", ""))
    assert told[0] == told[1]
    for end in (form, "proof"):
        assert (tmp_path / f"0.{end}").read_bytes() == (tmp_path / f"1.{end}").read_bytes()


def test_the_committed_values_are_opened_for_those_who_may(
    scene: Scene, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = next(row["index"] for row in scene.rows if row["type"] == "lease.submitted")
    monkeypatch.setenv("SEALRIG_TOKEN", scene.token)
    assert main(["audit", "show", str(index), "--log", scene.url, "--open", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["committed"] == {"job-name": "test", "tenant": "lab"}
    monkeypatch.setenv("SEALRIG_SERVER", scene.url)
    assert main(["audit", "show", str(index), "--log", str(scene.copy), "--open"]) == 0
    assert "committed tenant" in capsys.readouterr().out
    monkeypatch.setenv("SEALRIG_TOKEN", scene.house.token("customer", "works"))
    assert main(["audit", "show", str(index), "--log", scene.url, "--open"]) == 1
    assert "not-found" in capsys.readouterr().err
