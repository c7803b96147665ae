from __future__ import annotations

import subprocess
import sys

import pytest

from sandbox.cli import _COMMANDS, _exists, _Lazy, root
from tests.rig import run

# What the contract promises by name; the options are looked for in the help.
PROMISED = {
    "key new": ["--passphrase"],
    "seal": ["--out", "-o", "--key", "--label"],
    "open": ["-o", "--key"],
    "inspect": ["--key"],
    "mount": ["--key"],
    "cat": ["--range", "--key"],
    "push": ["--server"],
    "bundle list": ["--server"],
    "bundle show": ["--server"],
    "bundle delete": ["--server"],
    "job check": ["--policy"],
    "job submit": ["--key"],
    "release": ["--watch", "--key", "--trust", "--confirm"],
    "wait": ["--for", "--timeout"],
    "lease list": [],
    "lease show": [],
    "lease watch": [],
    "lease logs": ["-f", "--follow"],
    "lease cancel": [],
    "lease results": ["-o", "--key"],
    "lease receipt": ["-o"],
    "receipt verify": ["--trust"],
    "trust init": ["--server"],
    "trust check": [],
    "trust explain": [],
    "trust runners show": [],
    "trust runners sign": ["--lock", "--runner", "--key", "-o"],
    "trust runners add": ["--trust", "--older"],
    "evidence verify": ["--kind", "--chain", "--roots", "--nonce", "--rim", "--at"],
    "evidence collateral import": ["--cache", "--at"],
    "evidence collateral list": ["--cache"],
    "evidence collateral check": ["--cache", "--at"],
    "token new": ["--role", "--tenant"],
    "token list": [],
    "token revoke": [],
    "serve": ["--data", "--listen", "--database", "--store", "--tenant-quota", "--tls-cert", "--tls-key"],
    "demo": ["--keep"],
    "node init": [],
    "node run": [],
    "node doctor": [],
    "node attest": [],
    "node wipe": ["--backend", "--device"],
    "node list": [],
    "node wait": ["--timeout"],
    "node show": [],
    "node quarantine": [],
    "node restore": [],
    "policy check": [],
    "policy test": [],
    "policy explain": ["--policy"],
    "audit list": ["--log"],
    "audit show": ["--log"],
    "audit export": ["--log"],
    "audit verify": ["--log"],
    "audit prove": ["--log"],
    "audit watch": ["--log"],
    "audit witness": ["--log"],
}


@pytest.mark.parametrize(("command", "options"), PROMISED.items())
def test_the_contract_s_commands_are_there_with_json(command, options):
    result = run(*command.split(), "--help")
    assert result.code == 0, result.err
    for option in [*options, "--json", "--debug"]:
        assert option in result.out, option


def test_help_names_every_command_and_loads_none():
    code = "import sys; from sandbox.cli import main; main(['--help']); print(sorted(m for m in sys.modules if m.split('.')[0] in {NAMES}))"
    names = "{'httpx', 'pydantic', 'rich', 'yaml', 'cryptography', 'docker', 'fastapi', 'policies', 'attestation', 'sqlalchemy'}"
    done = subprocess.run([sys.executable, "-c", code.replace("{NAMES}", names)], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
    for _, name, places, summary in _COMMANDS:
        if any(_exists(place) for place in places.split()):
            assert name in done.stdout
            assert summary.split()[0] in done.stdout


def test_every_command_in_the_table_loads():
    for name, command in root().commands.items():
        assert isinstance(command, _Lazy)
        assert command.load().name == name


@pytest.mark.parametrize("args", [["nosuch"], ["key"], ["key", "nosuch"], ["push"], ["push", "--nosuch"], ["push", "/no/such/file"], []])
def test_wrong_usage_is_2_on_stderr(args):
    result = run(*args)
    assert result.code == 2
    assert result.err
    assert not result.out
    assert "Traceback" not in result.err


def test_wrong_usage_with_json_is_a_document():
    result = run("push", "--nosuch", "--json")
    assert result.code == 2
    assert result.error["code"] == "usage"
    assert "--nosuch" in result.error["message"]


def test_a_slip_is_corrected():
    assert "Did you mean 'lease'" in run("leese").err


def test_version():
    result = run("--version")
    assert result.code == 0
    assert result.out.startswith("sealrig ")


@pytest.mark.parametrize(("shell", "words"), [("bash", "COMP_WORDS"), ("zsh", "_TYPER_COMPLETE_ARGS"), ("fish", "_TYPER_COMPLETE_ARGS")])
def test_the_shell_completes_commands(shell, words, monkeypatch):
    env = {
        "_SEALRIG_COMPLETE": f"complete_{shell}",
        words: "sealrig lease ca",
        "COMP_CWORD": "2",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run([sys.executable, "-m", "sandbox.cli"], capture_output=True, text=True, check=False, env={"PATH": "", **env})
    assert "cancel" in done.stdout


def test_no_command_takes_a_token_in_argv():
    for name in ("push", "lease list", "token list", "config login", "serve", "node init"):
        assert "--token " not in run(*name.split(), "--help").out
