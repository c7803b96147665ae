"""The commands of ``./dev``. Only the standard library: this runs before anything is installed."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from engine import ensure_engine
from environment import ensure_environment
from node import ensure_node_packages
from system import BENCH_TOOLS, TEST_TOOLS, TOOLS, VM_TOOLS, Refusal, ensure_more_tools, ensure_tools, find, install, prefix_root, run
from testing import PARTS, run_parts

ROOT = Path(__file__).resolve().parents[2]
USAGE = """usage: ./dev COMMAND

  demo [--keep DIR] [--json]   set up, then play the main job on this machine, all ten steps
  test [PYTEST OPTIONS]        set up, then run every test that needs no GPU, with coverage
  lint                         ruff, mypy, import contracts
  bench [NAME] [--json]        measure against named peers: seal lazy lease audit receipt wipe leak api
  env                          set up, then print for a shell where sealrig is: eval "$(./dev env)"
  fmt                          format and mend what can be mended
  up                           control plane and one node, in the foreground
  vm [SYSTEM] WORDS            the demo or chosen tests in a virtual machine with a Debian of its own; says more without WORDS
"""


def demo(words: Sequence[str]) -> int:
    """Play the main job: ``sealrig demo``."""
    _machine()
    return run(prefix_root([str(_bin("sealrig")), "demo", *words]), env=_environment())


def test(words: Sequence[str]) -> int:
    """Run the tests, with coverage; the exit code is the tests' own, or the coverage's where they pass.

    With ``words`` one pytest runs them, without coverage: a chosen part says nothing about the whole.
    """
    with ThreadPoolExecutor() as pool:  # packages of the system and of Python come from different places
        python = pool.submit(ensure_environment, ROOT)
        ensure_more_tools({**TOOLS, **TEST_TOOLS})  # before the engine starts, which takes up runsc where there is one
        _node_packages()
        python.result()
    _machine()
    env = _environment()
    pytest = prefix_root([str(_bin("python")), "-m", "pytest"])
    if words:
        return run([*pytest, *words], env=env)
    coverage = prefix_root([str(_bin("coverage"))])
    run([*coverage, "erase"], env=env)
    code = run_parts([*coverage, "run", "-m", "pytest", "--durations=15"], PARTS, env)
    run([*coverage, "combine", "-q"], env=env)
    report = run([*coverage, "report"], env=env)
    return code or report


def lint(words: Sequence[str]) -> int:
    """Run every static check; all of them, even after one failed."""
    _no_words("lint", words)
    ensure_environment(ROOT)
    checks = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["mypy", "deploy/dev"], ["lint-imports", "--no-cache"])
    failed = [name for name, *rest in checks if run([str(_bin(name)), *rest], env=_environment())]
    if failed:
        sys.stderr.write(f"dev lint: failed: {', '.join(failed)}\n")
    return 1 if failed else 0


def fmt(words: Sequence[str]) -> int:
    """Format, and mend what ruff can mend safely."""
    _no_words("fmt", words)
    ensure_environment(ROOT)
    return run([str(_bin("ruff")), "check", "--fix", "."], env=_environment()) | run([str(_bin("ruff")), "format", "."], env=_environment())


def bench(words: Sequence[str]) -> int:
    """Measure: ``python -m bench``."""
    ensure_more_tools(BENCH_TOOLS)
    _machine()
    return run(prefix_root([str(_bin("python")), "-m", "bench", *words]), env=_environment())


def up(words: Sequence[str]) -> int:
    """Run a control plane and a node until Ctrl-C."""
    _machine()
    return run(prefix_root([str(_bin("python")), "-m", "sandbox.cli.demo.up", *words]), env=_environment())


def env(words: Sequence[str]) -> int:
    """Print what makes a shell find ``sealrig``, its tools and the engine. All else goes to stderr: the shell runs what is on stdout."""
    _no_words("env", words)
    with ExitStack() as back:
        out = os.dup(1)
        back.callback(os.close, out)
        os.dup2(2, 1)
        back.callback(os.dup2, out, 1)
        _machine()
    path = [str(_bin("")), *os.environ.get("PATH", "").split(":"), "/usr/sbin", "/sbin"]
    wanted = {"PATH": ":".join(dict.fromkeys(filter(None, path))), "DOCKER_HOST": os.environ.get("DOCKER_HOST", "")}
    sys.stdout.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in wanted.items() if value)
    return 0


def vm(words: Sequence[str]) -> int:
    """Run the demo or chosen tests in a virtual machine: another kernel, engine and Python than this machine's."""
    for tool, package in VM_TOOLS.items():
        if find(tool) is None:
            install(package.split())
    ensure_environment(ROOT)
    env = _environment()
    env["PATH"] += f":{ROOT / '.dev' / 'uv' / 'bin'}"
    return run(prefix_root([str(ROOT / "deploy" / "vm" / "run"), *words]), env=env)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": demo,
    "test": test,
    "lint": lint,
    "bench": bench,
    "env": env,
    "fmt": fmt,
    "up": up,
    "vm": vm,
}


def _machine() -> None:
    """Bring the machine to where the product runs: tools, engine, environment."""
    ensure_tools()
    host = ensure_engine(ROOT)
    ensure_environment(ROOT)
    if host:
        os.environ["DOCKER_HOST"] = host


def _node_packages() -> None:
    """Fetch what tests run under Node.js; a machine where that fails is told of, and its tests say what they leave out."""
    try:
        ensure_node_packages(ROOT)
    except Refusal as refusal:
        sys.stderr.write(f"dev: going on without packages for Node.js: {refusal}\n")


def _bin(name: str) -> Path:
    return ROOT / ".venv" / "bin" / name


def _environment() -> dict[str, str]:
    # Compiled modules are kept, whatever this machine's habit, and out of the tree. Without them each of the hundreds of programs that the
    # tests start compiles itself and all that it imports first, which takes longer than the rest of its start.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {
        **kept,
        "PYTHONPYCACHEPREFIX": str(ROOT / ".dev" / "pycache"),
        "VIRTUAL_ENV": str(ROOT / ".venv"),
        "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
    }


def _no_words(command: str, words: Sequence[str]) -> None:
    if words:
        raise Refusal(f"{command} takes no arguments, seen: {' '.join(words)}")


def main() -> int:
    """Run one command. Exit 2 for a wrong command line, 1 for what cannot be set up, else the command's own code."""
    words = sys.argv[1:]
    if not words or words[0] not in COMMANDS:
        sys.stderr.write(USAGE)
        return 0 if words and words[0] in {"-h", "--help", "help"} else 2
    os.chdir(ROOT)
    try:
        return COMMANDS[words[0]](words[1:])
    except Refusal as refusal:
        sys.stderr.write(f"dev: {refusal}\n")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
