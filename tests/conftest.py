"""What holds for every test: no setting and no folder of the person who runs it is seen."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

# Who runs the tests in the background of a script has them ignore Ctrl-C, and so would every program they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A deadline measures the machine, not the code. `--hypothesis-profile=stress` looks longer.
settings.register_profile("embcache", deadline=None, print_blob=True)
settings.register_profile("stress", settings.get_profile("embcache"), max_examples=5_000)
settings.load_profile("embcache")

PREFIXES = ("EMBCACHE_", "NOVITA_", "OPENAI_")
PROXIES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
HOMES = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Take away keys, settings and proxies, and move home to an empty folder (beside, not in, `tmp_path`)."""
    for name in list(os.environ):
        if name.startswith(PREFIXES) or name.upper() in PROXIES:
            monkeypatch.delenv(name)
    home = str(tmp_path_factory.mktemp("home"))
    for name in HOMES:
        monkeypatch.setenv(name, home)
