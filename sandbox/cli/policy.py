"""``sealrig policy``: check, test and explain policies offline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from attestation.signing import b64decode, b64encode
from policies.cases import CASES_MAX_BYTES, CaseResult, Coverage, load_cases, run_cases
from policies.engine import WRITTEN_PREFIX, evaluate
from policies.errors import PolicyError
from policies.loader import POLICY_MAX_BYTES, LoadedPolicy, load_policy, load_profile, validate
from policies.model import Decision, LaunchRequest, NodeFacts
from policies.review import remarks
from policies.signatures import image_message
from policies.strictyaml import load_yaml
from sandbox.admission import launch_request
from sandbox.cli.console import console, counted
from sandbox.cli.context import KeyOption, PassphraseOption, ServerOption, client, identity
from sandbox.errors import DeniedError, InputError, ServerError, UsageError
from sandbox.job import JOB_MAX_BYTES, job_from_tree, parse_job
from sandbox.model import is_sha256_digest

PROFILE_PREFIX = "profile:"
app = typer.Typer(no_args_is_help=True)

_PolicyPlace = Annotated[str, typer.Argument(metavar="FILE", help="A policy file, or profile:strict|standard|development.")]


@app.command()
def check(policy: _PolicyPlace) -> None:
    """Load a policy, name every problem, and say what a careful reader would remark."""
    here = console()
    try:
        loaded = policy_at(policy)
    except PolicyError as error:
        for problem in _all_problems(error)[1:]:
            here.say(f"also: {problem['message']}; {problem.get('fix', '')}")
        raise
    found = remarks(loaded)
    for remark in found:
        here.warn(remark)
    document = {
        "ok": True,
        "name": loaded.name,
        "digest": loaded.digest,
        "rules": [rule.name for rule in loaded.policy.spec.rules],
        "remarks": found,
        "unsafeDevelopment": loaded.policy.spec.unsafe_development,
    }
    here.emit(document, f"{loaded.name}: sound, {counted(len(loaded.policy.spec.rules), 'written rule')}\n{loaded.digest}")


@app.command()
def show(
    policy: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", help="A policy file, profile:NAME, or a digest the server knows; left out: yours."),
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Whose policy on the server (operator, auditor).")] = None,
    server: ServerOption = None,
) -> None:
    """Print the exact text of a policy: the one that holds on the server, one that held (by digest), a file, or a shipped profile."""
    if policy is not None and is_sha256_digest(policy):
        loaded = _by_digest(server, policy)
    else:
        loaded = policy_at(policy) if policy is not None else _from_server(server, tenant)
    text = loaded.raw.decode("utf-8")
    console().emit({"name": loaded.name, "digest": loaded.digest, "raw": text}, text.rstrip("\n"))


@app.command()
def explain(
    job: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job to ask about.")],
    policy: Annotated[str, typer.Option("--policy", metavar="FILE", help="A policy file, or profile:NAME.")],
    node: Annotated[Path | None, typer.Option("--node", help="Facts of a node (YAML); without it the answer is the one at submit.")] = None,
    tenant: Annotated[str, typer.Option("--tenant", help="The tenant that asks.")] = "tenant",
) -> None:
    """Say what a policy answers to a job, rule by rule, with every reason. Exit code 1 where it denies."""
    loaded = policy_at(policy)
    request = launch_request(parse_job(_read(job, JOB_MAX_BYTES)), tenant)
    facts = None if node is None else validate(NodeFacts, load_yaml(_read(node, CASES_MAX_BYTES)))
    decision = evaluate(loaded, request, facts)
    document = {"allowed": decision.allowed, "policy": {"name": loaded.name, "digest": loaded.digest}, "job": request.name,
                "reasons": decision.reasons, "deferred": decision.deferred, "checked": decision.checked}  # fmt: skip
    here = console()
    if not decision.allowed:
        if not here.json:
            here.table(_verdicts(decision))
        count = len(decision.reasons)
        here.fail(document, DeniedError(f"policy {loaded.name} denies {request.name}: {count} reasons", reasons=decision.reasons))
    here.emit(document, lambda: here.table(_verdicts(decision)))


@app.command("test")
def run_tests(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with files of cases (kind: PolicyCases), or one such file.")],
    require_coverage: Annotated[
        bool, typer.Option("--require-coverage", help="Fail unless each written rule both held and denied.")
    ] = False,
) -> None:
    """Run the operator's cases and print which rules they saw hold and deny. Exit code 1 where an answer differs."""
    reports = [_run_file(place) for place in _case_files(folder)]
    here = console()
    failed = sum(not result.ok for _, results, _ in reports for result in results)
    missing = [f"{place.name}: {one.rule}" for place, _, coverage in reports for one in coverage if _uncovered(one)]
    ok = not failed and not (require_coverage and missing)
    document = {"ok": ok, "files": [{"file": place, "cases": results, "coverage": coverage} for place, results, coverage in reports]}
    if not here.json:
        for report in reports:
            _print_report(*report)
    if failed:
        here.fail(document, InputError(f"{failed} cases got another answer than expected", rule="policy-test", seen=f"{failed} failed",
                                       wanted="every case as expected", fix="correct the policy or the case"))  # fmt: skip
    if not ok:
        here.fail(document, InputError("some written rules were not seen both to hold and to deny", rule="policy-coverage",
                                       seen=", ".join(missing), wanted="a case that meets and a case that breaks each rule",
                                       fix="add the missing cases"))  # fmt: skip
    here.emit(document, f"{counted(sum(len(results) for _, results, _ in reports), 'case')}, all as expected")


@app.command("sign-image")
def sign_image(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="sha256:… or repository@sha256:…; the digest is what is signed.")],
    key: KeyOption = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Sign an image's digest for policies that demand it: the signature goes into the job, the key into the policy."""
    digest = image.rpartition("@")[2]
    if not is_sha256_digest(digest):
        raise UsageError("an image is signed by its digest", rule="image-digest", seen=image[:200], wanted="a digest, sha256:…",
                         fix="docker image inspect tells the digest of a tag")  # fmt: skip
    signer = identity(key, passphrase_file).signing_key
    signature = f"ed25519:{b64encode(signer.sign(image_message(digest)))}"
    console().emit(
        {"image": digest, "signature": signature, "key": signer.public.text},
        f'in the job:     imageSignatures: ["{signature}"]\nin the policy:  images: {{signatures: {{keys: ["{signer.public.text}"]}}}}',
    )


def policy_at(place: str) -> LoadedPolicy:
    """Load a policy from a file, or a shipped profile from ``profile:NAME``."""
    if place.startswith(PROFILE_PREFIX):
        return load_profile(place.removeprefix(PROFILE_PREFIX))
    return load_policy(_read(Path(place), POLICY_MAX_BYTES))


def _from_server(server: str | None, tenant: str | None) -> LoadedPolicy:
    """Fetch a policy; its digest is computed here, from the bytes, and must be the one that the server tells."""
    with client(server) as control:
        told = control.policy(tenant)
    return _of_digest(b64decode(told.raw), told.digest)


def _by_digest(server: str | None, digest: str) -> LoadedPolicy:
    with client(server) as control:
        return _of_digest(control.policy_text(digest), digest)


def _of_digest(raw: bytes, digest: str) -> LoadedPolicy:
    loaded = load_policy(raw)
    if loaded.digest != digest:
        raise ServerError("the server tells another digest than its policy has", rule="policy-digest", seen=loaded.digest,
                          wanted=digest, fix="report this to the operator, and do not submit")  # fmt: skip
    return loaded


def _all_problems(error: PolicyError) -> list[dict[str, object]]:
    problems = error.details.get("problems")
    return problems if isinstance(problems, list) else []


def _read(path: Path, limit: int) -> bytes:
    # One byte more than the limit is enough for the loader to say that it is too large, however large it is.
    with path.open("rb") as file:
        return file.read(limit + 1)


def _case_files(folder: Path) -> list[Path]:
    found = (
        [folder] if folder.is_file() else sorted(path for path in folder.glob("*.y*ml") if b"PolicyCases" in _read(path, CASES_MAX_BYTES))
    )
    if not found:
        raise InputError(f"{folder}: no file of cases", rule="policy-test", seen="no *.yaml with kind: PolicyCases", wanted="at least one",
                         fix="write one; the shipped profiles have examples beside them")  # fmt: skip
    return found


def _run_file(place: Path) -> tuple[Path, list[CaseResult], list[Coverage]]:
    cases = load_cases(_read(place, CASES_MAX_BYTES))
    named = cases.policy if cases.policy.startswith(PROFILE_PREFIX) else str(place.parent / cases.policy)
    results, coverage = run_cases(policy_at(named), cases.cases, _request)
    return place, results, coverage


def _request(spec: Mapping[str, Any], tenant: str) -> LaunchRequest:
    """Return the request for a job whose spec may leave out the command, which no built-in rule looks at."""
    whole = {"apiVersion": "sealrig/v1", "kind": "Job", "metadata": {"name": "case"}, "spec": {"command": ["true"], **spec}}
    return launch_request(job_from_tree(whole), tenant)


def _uncovered(coverage: Coverage) -> bool:
    return coverage.rule.startswith(WRITTEN_PREFIX) and not (coverage.held and coverage.denied)


def _print_report(place: Path, results: list[CaseResult], coverage: list[Coverage]) -> None:
    here = console()
    rows = [
        {"case": one.name, "expected": one.expect, "got": one.verdict, "": "ok" if one.ok else f"FAILED: {one.problem}"} for one in results
    ]
    here.say(f"{place}")
    here.table(rows)
    here.table([{"rule": one.rule, "seen to hold": one.held, "seen to deny": one.denied} for one in coverage])


def _verdicts(decision: Decision) -> list[dict[str, str]]:
    """Return a row a rule: denied ones with what was seen and wanted, then those that held, then those that wait for a node."""
    failing = {reason.rule for reason in decision.reasons}
    rows = [{"rule": one.rule, "verdict": "DENIES", "seen": one.seen, "wanted": one.wanted} for one in decision.reasons]
    rows += [{"rule": name, "verdict": "holds", "seen": "", "wanted": ""} for name in decision.checked if name not in failing]
    return rows + [{"rule": name, "verdict": "waits for a node", "seen": "", "wanted": ""} for name in decision.deferred]
