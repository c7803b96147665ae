"""The main job on one machine, told in ten steps by three people: a customer, an operator, an auditor.

Three programs run (control plane, node, release agent), each with a data folder of its own, and speak HTTP over loopback. Everything
else is a command that a person would type, and is shown as it is typed.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from attestation.canonical import parse_json
from attestation.signing import Envelope, b64decode
from sandbox.cli.demo import assets, leftovers
from sandbox.cli.demo.image import ensure_image
from sandbox.cli.demo.interrupt import Interrupts
from sandbox.cli.demo.programs import Person, Programs, free_port
from sandbox.cli.demo.screen import Screen
from sandbox.customer.client import Client
from sandbox.errors import SealrigError, StateError, WipeError
from sandbox.lifecycle import TERMINAL, LeaseState, Outcome
from sandbox.node.engine import Engine
from sandbox.wire import LeaseInfo

TENANT = "demo"
STEP_WAIT = 5.0
UNDO_SECONDS = 40


@dataclass(frozen=True)
class Done:
    """What the demo ends with: the closed lease with its history, and where receipt and opened result are."""

    info: LeaseInfo
    receipt: Path
    result: Path


class Story:
    """One telling of the main job below ``folder``. ``close`` must follow, however it ended."""

    def __init__(
        self, folder: Path, engine: Engine, screen: Screen, interrupts: Interrupts, write_data: Callable[[Path], None] = assets.write_data
    ) -> None:
        """Lay out the three people's folders; nothing runs yet. ``write_data`` makes the customer's data folder."""
        self.folder = folder
        self.engine = engine
        self.screen = screen
        self.image = ""
        self._write_data = write_data
        self.programs = Programs(interrupts)
        self.server = f"http://127.0.0.1:{free_port()}"
        self.operator = self._person("operator")
        self.customer = self._person("customer")
        self.auditor = self._person("auditor")
        self.node: str | None = None
        self.node_key = ""
        self.lease: str | None = None

    def tell(self) -> Done:
        """Play all ten steps. Raises ``SealrigError`` where one does not hold."""
        self._operator_sets_up()
        self._customer_sets_up()
        bundles = self._seal_and_upload()
        lease = self._submit(bundles)
        info = self._follow(lease)
        receipt = self._receipt(info)
        result = self._result(lease)
        return Done(info, receipt, result)

    # ---- set-up

    def _operator_sets_up(self) -> None:
        screen, operator, data = self.screen, self.operator, self.operator.home
        screen.person("Operator", f"rents out this machine; control plane at {self.server}, node beside it")
        with screen.busy("building the image from this machine's own Python (no registry)"):
            self.image = ensure_image(self.engine)
        self._start("control plane", operator, ["serve", "--data", str(data / "control"), "--listen", self.server.removeprefix("http://")])
        with screen.busy("waiting for the control plane"):
            self.programs.wait_ready("control plane", self.server)
        self.operator = self._with_token(operator, (data / "control" / "operator.token").read_text().strip())
        for role, path in (
            ("node", data / "node.token"),
            ("customer", self.customer.home / "token"),
            ("auditor", self.auditor.home / "token"),
        ):
            issued = self._command(self.operator, ["token", "new", "--role", role, "--tenant", TENANT])
            path.touch(mode=0o600)
            path.write_text(issued["token"] + "\n")
        self.customer = self._with_token(self.customer, (self.customer.home / "token").read_text().strip())
        self.auditor = self._with_token(self.auditor, (self.auditor.home / "token").read_text().strip())
        policy = data / "policy.yaml"
        policy.write_text(assets.POLICY.format(image=self.image))
        self._command(self.operator, ["policy", "check", str(policy)])
        self._command(self.operator, ["policy", "apply", str(policy), "--tenant", TENANT])
        made = self._command(
            operator, ["node", "init", "--data", str(data / "node"), "--server", self.server, "--token-file", str(data / "node.token")]
        )
        self.node = str(made["node"])
        self._start("node", operator, ["node", "run", "--data", str(data / "node")])
        self.node_key = str(made["public_key"])
        with screen.busy("waiting for the node to register"), Client(self.server, self._token(self.operator)) as client:
            while not client.nodes():
                self.programs.check("node")
                time.sleep(0.05)

    def _customer_sets_up(self) -> None:
        home = self.customer.home
        self.screen.person("Customer", "owns a model and files; trusts the node's and the log's public keys, and nothing else there")
        assets.write_weights(home / "weights")
        assets.write_code(home / "code")
        self._write_data(home / "data")
        self._command(self.customer, ["key", "new", str(home / "key")])
        self._customer_trusts(self.node_key)

    def _customer_trusts(self, node_key: str) -> None:
        """Write the trust file from what the server shows, then compare it with what the operator handed over in person."""
        trust = self.folder / "TRUST.yaml"
        self._command(self.customer, ["trust", "init", "-o", str(trust)])
        shown = yaml.safe_load(trust.read_bytes())["spec"]
        handed = {"node": node_key, "log": (self.operator.home / "control" / "log" / "vkey").read_text().strip()}
        seen = {"node": shown["nodes"].get(self.node), "log": shown["log"]["key"]}
        if seen != handed:
            raise StateError(
                "the server shows other keys than the operator handed over",
                rule="demo-trust",
                seen=str(seen),
                wanted=str(handed),
                fix="do not trust it",
            )

    # ---- the ten steps

    def _seal_and_upload(self) -> dict[str, str]:
        home = self.customer.home
        sealed: dict[str, str] = {}
        with self.screen.step(1, "seal weights, code and data on the customer's machine"):
            for name in ("weights", "code", "data"):
                words = ["seal", str(home / name), "-o", str(home / f"{name}.sealed"), "--key", str(home / "key")]
                made = self._command(self.customer, words)
                sealed[name] = made["digest"]
                self.screen.note(f"{made['files']} files, {made['plaintext_size']:,} bytes -> {made['digest'][:23]}…")
        with self.screen.step(2, "upload the sealed bundles; the server sees ciphertext only"):
            for name in sealed:
                self._command(self.customer, ["push", str(home / f"{name}.sealed")])
        return sealed

    def _submit(self, bundles: dict[str, str]) -> str:
        home = self.customer.home
        job = home / "job.yaml"
        job.write_text(assets.JOB.format(image=self.image, **bundles))
        key, trust = str(home / "key"), str(self.folder / "TRUST.yaml")
        # The agent waits from now on: it alone hands out data keys, and only for jobs that this customer signed.
        self._start("release agent", self.customer, ["release", "--watch", "--key", key, "--trust", trust])
        with self.screen.step(3, "sign and submit the job; the operator's policy admits it"):
            self._command(self.customer, ["job", "check", str(job)])
            self.lease = str(self._command(self.customer, ["job", "submit", str(job), "--key", key])["lease"])
        self.screen.note(self.lease)
        return self.lease

    def _follow(self, lease: str) -> LeaseInfo:
        """Tell steps 4 to 8 as the lease goes through its states; the times are the control plane's own record."""
        told: set[LeaseState] = set()
        state: LeaseState | None = None
        with Client(self.server, token=self._token(self.customer)) as client:
            while True:
                with self.screen.busy(f"lease is {state or 'submitted'}"):
                    info = client.lease(lease, since=state, wait=STEP_WAIT)
                state = info.state
                self._tell_states(info, told)
                if state in TERMINAL:
                    break
                for program in ("control plane", "node", "release agent"):
                    self.programs.check(program)
        if info.outcome != Outcome.SUCCEEDED or info.state != LeaseState.CLOSED:
            raise StateError(
                f"the lease ended {info.state}: {info.outcome or 'no outcome'}",
                rule="demo-lease",
                seen=info.detail or "; ".join(f"{item.rule}: seen {item.seen}, wanted {item.wanted}" for item in info.denials),
                wanted="closed, succeeded",
                fix=f"look at the logs below {self.folder}",
            )
        return info

    def _tell_states(self, info: LeaseInfo, told: set[LeaseState]) -> None:
        at = {item.state: item.at for item in info.history}
        for state, since, number, title in _LEASE_STEPS:
            if state in at and since in at and state not in told:
                told.add(state)
                self.screen.done(number, title, (at[state] - at[since]).total_seconds())
                if state is LeaseState.ATTESTED:
                    self.screen.note(f"assurance level: {info.level}")
                if state is LeaseState.COLLECTING:
                    run = (at[LeaseState.COLLECTING] - at[LeaseState.RUNNING]).total_seconds()
                    self.screen.note(f"of that the job itself: {run:.2f} s")

    def _receipt(self, info: LeaseInfo) -> Path:
        """Tell steps 8 to 10: what the wipe proved, the certificate, and the receipt, verified offline by the auditor."""
        receipt = self.folder / "receipt.json"
        self._command(self.customer, ["lease", "receipt", info.id, "-o", str(receipt)])
        documents = parse_json(receipt.read_bytes(), max_bytes=64 * 1024 * 1024)["documents"]
        wipe = _payload(documents, "wipe")
        wiping = next(item.at for item in info.history if item.state is LeaseState.WIPING)
        closed = next(item.at for item in info.history if item.state is LeaseState.CLOSED)
        seconds = sum(float(step["seconds"]) for step in wipe["steps"])
        self.screen.done(8, f"wipe: {len(wipe['steps'])} things done and proven", seconds)
        for step in wipe["steps"]:
            self.screen.note(f"{step['step']}: {step['seen']}")
        self.screen.done(
            9, "the node signs a sanitization certificate (NIST SP 800-88 fields)", (closed - wiping).total_seconds() - seconds
        )
        self.screen.person("Auditor", "checks the receipt without the server, and the server's whole log against its key")
        trust = str(self.folder / "TRUST.yaml")
        with self.screen.step(10, "verify the receipt offline, and the whole audit log"):
            verified = self._command(self.auditor, ["receipt", "verify", str(receipt), "--trust", trust])
            self._command(self.auditor, ["audit", "verify", "--log", self.server, "--trust", trust])
        self.screen.note(f"{len(verified['steps'])} checks hold, from {verified['steps'][0]['step']} to {verified['steps'][-1]['step']}")
        self.screen.note("anyone with the receipt and the trust file can repeat this, without a network and without an account")
        return receipt

    def _result(self, lease: str) -> Path:
        """Open the result with the customer's key and check it against what the model must say."""
        folder = self.folder / "result"
        self.screen.person("Customer", "opens the result, which nobody else can")
        key, trust = str(self.customer.home / "key"), str(self.folder / "TRUST.yaml")
        self._command(self.customer, ["lease", "results", lease, "-o", str(folder), "--key", key, "--trust", trust])
        result = next(iter(sorted(folder.rglob("result.json"))), folder / "result.json")
        answers = assets.check_result(result)
        self.screen.answers(answers)
        wrong = [item for item in answers if not item.ok]
        if wrong:
            raise StateError(
                "the model did not say what it must say",
                rule="demo-result",
                seen=", ".join(f"{item.file}: {item.seen}" for item in wrong),
                wanted=", ".join(f"{item.file}: {item.wanted}" for item in wrong),
                fix="compare the magika package's version",
            )
        return result

    # ---- the end

    def close(self) -> None:
        """End the lease if it lives, let the node wipe, stop every program, and prove that nothing is left. Raises ``WipeError``."""
        if self.lease is not None:
            self._end_lease(self.lease)
        self.programs.stop_all()
        left = leftovers.find(self.folder, self.node, self.engine)
        if left:
            leftovers.remove(self.folder, self.node, self.engine)
            still = leftovers.find(self.folder, self.node, self.engine)
            raise WipeError(
                "the node left something behind" + (", and it is still there" if still else "; it was removed by force"),
                rule="demo-leftovers",
                seen=", ".join(still or left),
                wanted="nothing",
                fix="remove by hand what is named here",
            )

    def remove_private(self) -> None:
        """Remove all but the receipt, the trust file and the opened result: keys, plaintext, sealed bundles, data folders."""
        for person in (self.operator, self.customer, self.auditor):
            shutil.rmtree(person.home, ignore_errors=True)

    def _end_lease(self, lease: str) -> None:
        """Cancel a lease that has not ended and wait for the node's wipe. Without the control plane, the rest of ``close`` must do."""
        try:
            with Client(self.server, token=self._token(self.customer), patience=3) as client:
                info = client.lease(lease, wait=0)
                if info.state not in TERMINAL:
                    info = client.cancel(lease)
                waited = 0.0
                while info.state not in TERMINAL and waited < UNDO_SECONDS:
                    info = client.lease(lease, since=info.state, wait=STEP_WAIT)
                    waited += STEP_WAIT
        except SealrigError as error:
            self.screen.say(f"the lease could not be cancelled ({error.message}); cleaning up without", "yellow")

    # ---- small things

    def _person(self, name: str) -> Person:
        home = self.folder / name
        home.mkdir(mode=0o711 if name == "operator" else 0o700)
        return Person(name, home)

    def _with_token(self, person: Person, token: str) -> Person:
        return Person(person.name, person.home, {"SEALRIG_SERVER": self.server, "SEALRIG_TOKEN": token})

    def _token(self, person: Person) -> str:
        return person.settings.get("SEALRIG_TOKEN", "")

    def _start(self, name: str, person: Person, words: list[str]) -> None:
        self.screen.typed(f"sealrig {self._shown(words)} &")
        self.programs.start(name, person, words, person.home / f"{name.replace(' ', '-')}.log")

    def _command(self, person: Person, words: list[str]) -> Any:  # noqa: ANN401  (each command has its own document)
        self.screen.typed(f"sealrig {self._shown(words)}")
        return self.programs.command(person, words)

    def _shown(self, words: list[str]) -> str:
        return shlex.join(word.removeprefix(f"{self.folder}/") for word in words)


_S = LeaseState
_LEASE_STEPS = (
    (_S.ATTESTED, _S.PLACED, 4, "the node binds evidence to this job, a nonce and a fresh lease key"),
    (_S.UNLOCKED, _S.ATTESTED, 5, "the customer's agent verifies the evidence, then wraps the keys"),
    (_S.COLLECTING, _S.UNLOCKED, 6, "launch exactly as planned in a hardened container, and run"),
    (_S.WIPING, _S.COLLECTING, 7, "seal logs and /out to the customer, upload the result"),
)


def _payload(documents: dict[str, Any], kind: str) -> dict[str, Any]:
    envelope = Envelope.from_bytes(b64decode(documents[kind]["data"]))
    document: dict[str, Any] = parse_json(envelope.payload)
    return document
