"""Every call that a person's commands make to the control plane, one method a call, typed on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, cast
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from attestation.canonical import canonical_json, sha256_digest
from attestation.signing import Envelope, b64encode
from sandbox.customer.http import MAX_PROBLEM_BYTES, Connection
from sandbox.errors import InputError, NotFoundError, ServerError
from sandbox.lifecycle import LeaseState
from sandbox.wire import (
    MAX_WAIT_SECONDS,
    BundleInfo,
    ErasureInfo,
    EvidenceInfo,
    GrantSubmission,
    IdentityEnrolment,
    LeaseInfo,
    LeaseSubmission,
    LogEntryDetail,
    LoggedPolicyChange,
    LogPage,
    NodeInfo,
    NonceRequest,
    PolicyChange,
    PolicyInfo,
    Refusal,
    TokenInfo,
    TokenIssued,
    TokenRequest,
    WaitingLeases,
    Whoami,
)

MAX_RECEIPT_BYTES = 64 * 1024 * 1024
LIST_SECONDS = 2.0
"""Between two looks at an older server, which cannot hold a question open."""
_T = TypeVar("_T")
_BUNDLES = TypeAdapter(list[BundleInfo])
_LEASES = TypeAdapter(list[LeaseInfo])
_NODES = TypeAdapter(list[NodeInfo])
_CHANGES = TypeAdapter(list[LoggedPolicyChange])
_POLICIES = TypeAdapter(list[PolicyInfo])
_TOKENS = TypeAdapter(list[TokenInfo])


class Client(Connection):
    """The control plane as a customer, an operator or an auditor calls it. Raises the errors that ``Connection.request`` names."""

    # ---- people, tokens, policies

    def whoami(self) -> Whoami:
        """Return who the token is."""
        return self.request("GET", "/v1/whoami").model(Whoami)

    def new_token(self, wanted: TokenRequest) -> TokenIssued:
        """Issue a token (operator). Not repeated by itself: each try would issue another."""
        return self.request("POST", "/v1/tokens", json=wanted.model_dump(mode="json")).model(TokenIssued)

    def tokens(self) -> list[TokenInfo]:
        """Return all tokens, without their secrets (operator)."""
        return self._list("/v1/tokens", _TOKENS)

    def revoke_token(self, token: str) -> None:
        """Revoke a token by its id (operator)."""
        self.request("DELETE", f"/v1/tokens/{_part(token)}")

    def enrol(self, identity: str) -> None:
        """Enrol a public identity for the token's tenant; enrolling it again changes nothing."""
        body = IdentityEnrolment(identity=identity).model_dump(mode="json")
        self.request("POST", "/v1/identities", json=body, repeatable=True)

    def policy(self, tenant: str | None = None) -> PolicyInfo:
        """Return the policy of the token's tenant, or of ``tenant`` (operator, auditor)."""
        return self.request("GET", "/v1/policy", params={"tenant": tenant} if tenant else None).model(PolicyInfo)

    def policies(self) -> list[PolicyInfo]:
        """Return every tenant's policy (operator, auditor)."""
        return self._list("/v1/policies", _POLICIES)

    def apply_policy(self, tenant: str, raw: bytes, *, dry_run: bool = False) -> PolicyChange:
        """Make exact bytes the policy of a tenant, or only say what that would do (operator)."""
        params = {"dry_run": "true"} if dry_run else None
        return self.request("PUT", f"/v1/policies/{_part(tenant)}", json={"raw": b64encode(raw)}, params=params).model(PolicyChange)

    def policy_text(self, digest: str) -> bytes:
        """Return a policy's exact bytes by their digest; the caller checks them against it."""
        return self.request("GET", f"/v1/policy/{_part(digest)}").body

    def policy_changes(self, tenant: str | None = None, *, limit: int = 20) -> list[LoggedPolicyChange]:
        """Return the newest changes of the policy of the token's tenant, or of ``tenant`` (operator, auditor)."""
        params: dict[str, str | int | float] = {"limit": limit}
        if tenant is not None:
            params["tenant"] = tenant
        return self._list("/v1/policy-changes", _CHANGES, params)

    # ---- bundles

    def bundles(self) -> list[BundleInfo]:
        """Return the tenant's bundles."""
        return self._list("/v1/bundles", _BUNDLES)

    def bundle(self, digest: str) -> BundleInfo:
        """Return one bundle. Raises ``NotFoundError``."""
        return self.request("GET", f"/v1/bundles/{_part(digest)}").model(BundleInfo)

    def delete_bundle(self, digest: str) -> None:
        """Delete a bundle of the tenant."""
        self.request("DELETE", f"/v1/bundles/{_part(digest)}")

    def bundle_content(self, digest: str, start: int = 0) -> Iterator[bytes]:
        """Yield a bundle's bytes from ``start`` on; the caller checks them against the digest."""
        return self.stream(f"/v1/bundles/{_part(digest)}/content", start=start)

    # ---- leases

    def submit(self, job: Envelope) -> LeaseInfo:
        """Submit a signed job. Repeating it is safe: the signed job names its lease."""
        body = LeaseSubmission(job=job.to_json()).model_dump(mode="json")
        return self.request("POST", "/v1/leases", json=body, repeatable=True).model(LeaseInfo)

    def leases(self, state: LeaseState | None = None, *, limit: int = 100, before: str | None = None) -> list[LeaseInfo]:
        """Return the tenant's leases, newest first."""
        params: dict[str, str | int | float] = {"limit": limit}
        if state is not None:
            params["state"] = state.value
        if before is not None:
            params["before"] = before
        return self._list("/v1/leases", _LEASES, params)

    def waiting(self, *, mark: str = "", wait: float = 0) -> WaitingLeases:
        """Return the leases that wait for the release agent; with the last answer's ``mark``, wait at most ``wait`` seconds for others."""
        params: dict[str, str | int | float] = {"mark": mark, "wait": wait}
        try:
            return self.request("GET", "/v1/leases/waiting", params=params, wait=wait).model(WaitingLeases)
        except (NotFoundError, InputError):  # a server from before this question takes "waiting" for a lease's id
            found = tuple(lease for state in (LeaseState.PLACED, LeaseState.ATTESTED) for lease in self.leases(state))
        now = sha256_digest(canonical_json([[lease.id, lease.state.value] for lease in found]))
        if now == mark:
            self.sleep(min(wait, LIST_SECONDS))
        return WaitingLeases(mark=now, leases=found)

    def lease(self, lease: str, *, since: LeaseState | None = None, wait: float = MAX_WAIT_SECONDS) -> LeaseInfo:
        """Return a lease; with ``since``, wait at most ``wait`` seconds until its state is another."""
        if since is None:
            return self.request("GET", f"/v1/leases/{_part(lease)}").model(LeaseInfo)
        return self.request("GET", f"/v1/leases/{_part(lease)}", params={"since": since.value, "wait": wait}, wait=wait).model(LeaseInfo)

    def cancel(self, lease: str) -> LeaseInfo:
        """Ask for a lease's end."""
        return self.request("POST", f"/v1/leases/{_part(lease)}/cancel", repeatable=True).model(LeaseInfo)

    def revoke(self, lease: str) -> LeaseInfo:
        """Take the keys back: the node stops and wipes."""
        return self.request("POST", f"/v1/leases/{_part(lease)}/revoke", repeatable=True).model(LeaseInfo)

    def put_nonce(self, lease: str, nonce: bytes) -> None:
        """Give the node its challenge; the same nonce again changes nothing."""
        self.request("PUT", f"/v1/leases/{_part(lease)}/nonce", json=NonceRequest(nonce=nonce.hex()).model_dump(mode="json"))

    def evidence(self, lease: str) -> EvidenceInfo:
        """Return the node's evidence with the plan and the policy that it binds."""
        return self.request("GET", f"/v1/leases/{_part(lease)}/evidence").model(EvidenceInfo)

    def grant(self, lease: str, grant: Envelope) -> None:
        """Hand the signed grant over; the same grant again changes nothing."""
        body = GrantSubmission(grant=grant.to_json()).model_dump(mode="json")
        self.request("POST", f"/v1/leases/{_part(lease)}/grant", json=body, repeatable=True)

    def refuse(self, lease: str, refusal: Refusal) -> None:
        """Tell the server that no key will be released, and why."""
        self.request("POST", f"/v1/leases/{_part(lease)}/refusal", json=refusal.model_dump(mode="json"), repeatable=True)

    def logs(self, lease: str, *, after: int = 0, wait: float = 0) -> LogPage:
        """Return sealed log chunks from number ``after`` on, waiting at most ``wait`` seconds for one."""
        return self.request("GET", f"/v1/leases/{_part(lease)}/logs", params={"after": after, "wait": wait}, wait=wait).model(LogPage)

    def receipt(self, lease: str) -> bytes:
        """Return the receipt's exact bytes."""
        return self.request("GET", f"/v1/leases/{_part(lease)}/receipt", max_bytes=MAX_RECEIPT_BYTES).body

    # ---- nodes and the log

    def nodes(self) -> list[NodeInfo]:
        """Return the nodes."""
        return self._list("/v1/nodes", _NODES)

    def changed_nodes(self, *, mark: str = "", wait: float = 0) -> tuple[str, list[NodeInfo]]:
        """Return the nodes and a mark of where they stand; with the last answer's ``mark``, wait at most ``wait`` seconds for another."""
        answer = self.request("GET", "/v1/nodes", params={"mark": mark, "wait": wait}, wait=wait)
        found, now = _parsed(answer.body, _NODES), answer.headers.get("etag", "").strip('"')
        if not now and mark:  # a server from before this question answers at once, and gives no mark
            self.sleep(min(wait, LIST_SECONDS))
        return now or "unmarked", found

    def ready(self) -> None:
        """Return once the server answers that it takes requests: asked again for as long as this client's patience lasts."""
        self.request("GET", "/readyz", max_bytes=MAX_PROBLEM_BYTES)

    def node(self, node: str) -> NodeInfo:
        """Return one node."""
        return self.request("GET", f"/v1/nodes/{_part(node)}").model(NodeInfo)

    def quarantine(self, node: str) -> NodeInfo:
        """Give a node no further lease (operator)."""
        return self.request("POST", f"/v1/nodes/{_part(node)}/quarantine", repeatable=True).model(NodeInfo)

    def restore(self, node: str) -> NodeInfo:
        """Lift a node's quarantine (operator)."""
        return self.request("POST", f"/v1/nodes/{_part(node)}/restore", repeatable=True).model(NodeInfo)

    def log_key(self) -> str:
        """Return the audit log's verifier key (C2SP vkey) as the server gives it; a person compares it."""
        return self.request("GET", "/log/vkey", max_bytes=4096).body.decode("utf-8", "replace").strip()

    def log_entry(self, index: int) -> LogEntryDetail:
        """Return an entry of the audit log with what it commits to. Nothing in it is proven yet."""
        return self.request("GET", f"/v1/log/entries/{index}").model(LogEntryDetail)

    def erase(self, subject: str) -> ErasureInfo:
        """Erase a tenant by its random id (operator). It cannot be undone."""
        return self.request("POST", f"/v1/subjects/{_part(subject)}/erase").model(ErasureInfo)

    def _list(self, path: str, adapter: TypeAdapter[list[_T]], params: dict[str, str | int | float] | None = None) -> list[_T]:
        return _parsed(self.request("GET", path, params=params).body, adapter)


def _parsed(body: bytes, adapter: TypeAdapter[list[_T]]) -> list[_T]:
    """Parse a list. Raises ``ServerError`` where it is not as agreed; what a newer server adds is passed over."""
    try:
        return adapter.validate_json(body, extra="ignore")
    except ValidationError as error:
        first = cast("dict[str, Any]", error.errors(include_url=False, include_input=False)[0])
        raise ServerError(
            "the server's answer is not as agreed",
            rule="wire",
            seen=str(first["msg"])[:300],
            wanted="the messages of this version",
            fix="use the same version of sealrig on both sides",
        ) from error


def _part(name: str) -> str:
    """Return a name as one part of a path: whatever it holds, it cannot lead to another path."""
    return quote(name, safe=":")
