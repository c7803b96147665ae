"""Settings: precedence, file mode, and unknown keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.config import config_path, load_settings
from sandbox.errors import UsageError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("SEALRIG_SERVER", "SEALRIG_TOKEN", "SEALRIG_KEY", "SEALRIG_TRUST"):
        monkeypatch.delenv(name, raising=False)
    config_path().parent.mkdir()
    return tmp_path


def write(text: str, mode: int = 0o600) -> None:
    config_path().write_text(text)
    config_path().chmod(mode)


@pytest.mark.usefixtures("home")
def test_without_a_file_everything_is_open() -> None:
    assert load_settings().server is None


@pytest.mark.usefixtures("home")
def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write("server: http://file\ntoken: from-file\n")
    monkeypatch.setenv("SEALRIG_SERVER", "http://env")
    settings = load_settings()
    assert (settings.server, settings.token) == ("http://env", "from-file")
    assert "from-file" not in repr(settings)


@pytest.mark.usefixtures("home")
def test_a_file_that_others_can_read_is_refused() -> None:
    write("token: x\n", 0o644)
    with pytest.raises(UsageError, match="can be read by others") as caught:
        load_settings()
    assert caught.value.details["seen"] == "0644"


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("text", ["tokn: x\n", "- a\n", "token: 5\n", "token: a\ntoken: b\n"])
def test_a_broken_file_is_refused(text: str) -> None:
    write(text)
    with pytest.raises(UsageError):
        load_settings()


@pytest.mark.usefixtures("home")
def test_an_unknown_key_names_the_nearest() -> None:
    write("tokn: x\n")
    with pytest.raises(UsageError) as caught:
        load_settings()
    assert "token" in str(caught.value.details["fix"])
