"""`embcache doctor`: the real command in processes of its own, and its judgement of facts that no machine has all."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from embcache.cli.checkup import Facts, Level, ProviderFacts, exit_code, judge
from embcache.cli.common import Code
from embcache.cli.doctor import _reach
from embcache.stores import DiskStore
from embcache.stores.folder import ASIDE, MARKER, file_system, network_file_system
from embcache.stores.state import FilesState, FolderState

from tests.cli.commands import Run, Terminal, embcache, passages, started
from tests.programs import NOBODY, tool, unable
from tests.upstream import Upstream, hang, raw, redirect, status

if TYPE_CHECKING:
    from pathlib import Path

    from embcache.providers.openai_compatible import OpenAICompatibleProvider

LISTED = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"data":[]}'
# root may do everything whatever the rights say; without these two capabilities it may do what any owner may.
BOUND_BY_RIGHTS = 'exec setpriv --bounding-set=-dac_override,-dac_read_search "$@"' if os.geteuid() == 0 else ":"


@pytest.fixture
def cache(folder: Path) -> Path:
    """The cache folder of a user who has embedded something."""
    lines = "".join(text + "\n" for text in passages(5)).encode()
    assert embcache(folder, "embed", "-", stdin=lines).code == 0
    return folder / "cache"


def findings(run: Run) -> dict[str, dict[str, Any]]:
    """What a run with `--json` found, by what was looked at."""
    assert run.err == ""
    told = json.loads(run.out)
    assert (told["version"], list(told)) == (1, ["version", "level", "findings"])
    by_check = {one["check"]: one for one in told["findings"]}
    assert len(by_check) == len(told["findings"]), "a check is told twice"
    levels = [level.value for level in Level]
    assert told["level"] == levels[max(levels.index(one["level"]) for one in told["findings"])]
    for one in told["findings"]:
        assert one["advice"] or one["level"] in ("ok", "note"), f"what to do about {one}?"
    return by_check


def examined(folder: Path, *options: str, code: int = 0, **how: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401 - of embcache()
    run = embcache(folder, "doctor", "--json", *options, **how)
    assert run.code == code, run
    return findings(run)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_is_well(folder: Path, cache: Path, server: Upstream) -> None:
    """Of a cache in good order everything is told, nothing stops it, and the server is asked for nothing billed."""
    server.forget()
    server.play(raw(LISTED))

    found = examined(folder)

    assert [name for name, one in found.items() if one["level"] == "problem"] == []
    ours = ("folder", "rights", "file-system", "space", "cache", "log", "set-aside", "key", "provider", "versions")
    assert {found[name]["level"] for name in ours} == {"ok"}
    assert sqlite3.sqlite_version in found["sqlite"]["message"]
    assert "CVE-2025-69872" in found["advisory"]["message"]
    assert str(cache) in found["folder"]["message"]
    assert [(request.method, request.path) for request in server.requests] == [("GET", "/v1/models")]
    assert server.billed_tokens == 0


def test_lines(folder: Path, cache: Path) -> None:
    """Into a pipe go plain lines: level, what was looked at, what was found; beneath it, what to do."""
    (cache / f"{ASIDE}1").write_bytes(bytes(1000))
    run = embcache(folder, "doctor")
    assert (run.code, run.err) == (0, "")
    lines = run.out.decode().splitlines()
    assert all(line.split()[0] in (*Level, "->") for line in lines)
    at = next(number for number, line in enumerate(lines) if line.split()[1] == "set-aside")
    assert lines[at].split()[:4] == ["warning", "set-aside", "1", "damaged"]
    assert lines[at + 1].strip().startswith("-> embcache verify --repair")


def test_terminal(folder: Path) -> None:
    """On a terminal the same stands in a table that fits it, and a folder's name is no markup."""
    with Terminal(columns=80) as screen:
        with started(folder, "doctor", "--cache-dir", "[red]x", stdout=screen.end) as run:
            assert run.end().code == 0
        shown = screen.shown()
    assert "[red]x" in "".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


# It changes nothing


def test_makes_nothing(folder: Path) -> None:
    """Where there is no cache folder that is no fault, and none is made."""
    found = examined(folder)
    assert found["folder"]["level"] == "note"
    assert list(folder.iterdir()) == []


def test_changes_nothing(folder: Path, cache: Path) -> None:
    """Looking at a cache leaves every byte of its files as it was, and no file more."""
    before = contents(cache)
    assert set(before) == {MARKER, "cache.db"}
    examined(folder)
    assert contents(cache) == before


def test_changes_nothing_beside_a_writer(folder: Path, cache: Path) -> None:
    """The log of a process that has the cache open is read as it is, and not folded in."""
    with closing(DiskStore(cache)) as store:
        store.put_many({bytes(16): b"x" * 100}, space=b"s")
        before = contents(cache)
        assert before["cache.db-wal"]
        assert examined(folder)["cache"]["level"] == "ok"
        after = contents(cache)
        assert (before.pop("cache.db-shm", None) is None) == (after.pop("cache.db-shm", None) is None)
        assert after == before


# The provider


def test_nobody_there(folder: Path) -> None:
    """A server that cannot be connected to is a problem."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # taken, but nobody listens
        found = examined(folder, "--base-url", f"http://127.0.0.1:{taken.getsockname()[1]}/v1", code=1)
    assert found["provider"]["level"] == "problem"
    assert "cannot connect to 127.0.0.1" in found["provider"]["message"]


def test_nobody_answers(folder: Path, server: Upstream) -> None:
    """A server that does not answer is waited for, but not for ever."""
    server.play(hang(600))
    found = examined(folder, code=1)
    assert "within 5 s" in found["provider"]["message"]


def test_a_resolver_that_hangs() -> None:
    """A look-up of the server's name that never ends is left after a while.

    Stands in for a provider: no resolver here hangs on demand.
    """
    never = threading.Event()

    class Hanging:
        id = "somewhere"

        def reach(self, timeout: float) -> int:
            never.wait(60)
            return 200

    try:
        status, failure = _reach(cast("OpenAICompatibleProvider", Hanging()))
    finally:
        never.set()
    assert status is None
    assert failure == "somewhere could not be reached within 5 s"


@pytest.mark.parametrize(
    ("answer", "level", "code"),
    [
        (status(401), "problem", 1),
        (status(403), "warning", 0),
        (status(429), "warning", 0),
        (status(404), "note", 0),
        (status(503), "warning", 0),
        (redirect("http://127.0.0.1:1/v1"), "warning", 0),
        (raw(LISTED), "ok", 0),
    ],
)
def test_answers(folder: Path, server: Upstream, answer: Any, level: str, code: int) -> None:  # noqa: ANN401 - a step
    """What the server answers is judged: only a key that it does not take stops embcache."""
    server.play(answer)
    assert examined(folder, code=code)["provider"]["level"] == level
    assert len(server.requests) == 1


def test_no_key(folder: Path) -> None:
    """Without a key for Novita nothing can be bought, which is a problem; it is told how one is set."""
    nowhere = {"NOVITA_API_KEY": None, "EMBCACHE_BASE_URL": None, "HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": ""}
    found = examined(folder, code=1, env=nowhere)
    assert found["key"]["level"] == "problem"
    assert "NOVITA_API_KEY" in found["key"]["advice"]


def test_a_key_is_not_shown(folder: Path, server: Upstream) -> None:
    """Whether a key is set is told, and sent to the server; what it is, nowhere (every run here is checked for it)."""
    server.play(raw(LISTED))
    assert examined(folder)["key"]["message"].startswith("an API key is set")
    assert server.requests[0].headers["authorization"].startswith("Bearer sk-")
    found = examined(folder, code=1, env={"NOVITA_API_KEY": "sk-CANARY with blanks"})
    assert "NOVITA_API_KEY" in found["provider"]["message"]
    assert "key" not in found


def test_local(folder: Path, server: Upstream) -> None:
    """A model in the process needs no key and no server."""
    pytest.importorskip("wordllama")
    found = examined(folder, "--provider", "local", env={"NOVITA_API_KEY": None})
    assert (found["key"]["level"], found["provider"]["level"]) == ("ok", "ok")
    assert server.connections == 0


# Folder and files


def test_a_folder_that_others_may_write_to(folder: Path, cache: Path) -> None:
    """A folder that is refused is a problem and exit code 3; what it holds is not looked at."""
    cache.chmod(0o770)
    found = examined(folder, code=3)
    assert "can be written by its group" in found["folder"]["message"]
    assert found["cache"]["level"] == "note"


def test_a_link(folder: Path, cache: Path) -> None:
    """A link to a folder is refused, as by every command."""
    cache.rename(folder / "elsewhere")
    cache.symlink_to(folder / "elsewhere")
    assert "is a link" in examined(folder, code=3)["folder"]["message"]


def test_somebody_elses(folder: Path, cache: Path) -> None:
    """A folder of another user is refused, and it is told whose it is."""
    if os.geteuid() != 0:
        unable("only root can give a folder away")
    os.chown(cache, NOBODY, NOBODY)
    assert str(NOBODY) in examined(folder, code=3)["folder"]["message"]


def test_others_may_look(folder: Path, cache: Path) -> None:
    """A folder that others may read is warned of."""
    cache.chmod(0o755)
    found = examined(folder)
    assert (found["rights"]["level"], "0755" in found["rights"]["message"]) == ("warning", True)


def test_read_only(folder: Path, cache: Path) -> None:
    """A folder that cannot be written is warned of; it can be read, which stops nothing."""
    if os.geteuid() == 0:
        tool("setpriv")
    cache.chmod(0o500)
    found = examined(folder, first=BOUND_BY_RIGHTS)
    assert found["rights"]["level"] == "warning"
    assert "may not write" in found["rights"]["message"]
    assert found["cache"]["level"] == "ok"


def test_cannot_be_made(folder: Path) -> None:
    """A folder that is not there and cannot be made is a problem: nothing could be kept."""
    if os.geteuid() == 0:
        tool("setpriv")
    (folder / "shut").mkdir(mode=0o500)
    found = examined(folder, "--cache-dir", "shut/cache", code=1, first=BOUND_BY_RIGHTS)
    assert found["folder"]["level"] == "problem"
    assert "may not make it" in found["folder"]["message"]


def test_garbage(folder: Path, cache: Path) -> None:
    """A cache that cannot be read is exit code 3, and verify is named."""
    (cache / "cache.db").write_bytes(b"This is no database. " * 100)
    found = examined(folder, code=3)
    assert "not a database" in found["cache"]["message"]
    assert "verify" in found["cache"]["advice"]


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("CREATE TRIGGER t AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END", 3, "schema holds what"),
        ("DROP TABLE Cache", 3, "cannot be read"),
        ("PRAGMA user_version = 99", 1, "newer embcache"),
    ],
)
def test_changed_by_others(folder: Path, cache: Path, change: str, code: int, said: str) -> None:
    """A database that holds what embcache does not write, lacks what it does, or is of a newer one, is told of."""
    with closing(sqlite3.connect(cache / "cache.db")) as database:
        database.execute(change)
        database.commit()
    found = examined(folder, code=code)
    assert found["cache"]["level"] == "problem"
    assert said in found["cache"]["message"]


def test_not_ours(folder: Path, cache: Path) -> None:
    """A database without embcache's mark beside it is not written to, which is a problem."""
    (cache / MARKER).unlink()
    assert "not made by embcache" in examined(folder, code=1)["cache"]["message"]


@pytest.mark.parametrize("options", [["--base-url", "nope"], ["--provider", "local", "--base-url", "http://x"], ["x"]])
def test_wrong_usage(folder: Path, options: list[str]) -> None:
    """A mistake in the command is exit code 2."""
    run = embcache(folder, "doctor", *options)
    assert (run.code, run.out) == (2, b"")


# Judgement

GOOD = Facts(
    versions={"embcache": "0.1.0", "diskcache": "5.6.3", "numpy": "2.0", "httpx": "0.28"},
    python="3.13.0",
    sqlite=(3, 51, 3),
    folder=FolderState("/cache", exists=True, owner="me", mode=0o700, file_system="ext4", free=1 << 40),
    files=FilesState(size=1 << 20),
    provider=ProviderFacts("novita", has_key=True, status=200),
)


def level(facts: Facts, check: str) -> Level:
    return next(one.level for one in judge(facts) if one.check == check)


def test_nothing_is_wrong() -> None:
    """Facts without fault give findings without fault, beside the note on the advisory."""
    assert {one.check for one in judge(GOOD) if one.level is not Level.OK} == {"advisory"}
    assert exit_code(GOOD, judge(GOOD)) is Code.DONE


@pytest.mark.parametrize(
    ("version", "faulty"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 0), True),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 0), False),
    ],
)
def test_sqlites_fault(version: tuple[int, int, int], faulty: bool) -> None:
    """SQLite 3.7.0 to 3.51.2 is warned of, but for the two patch releases that have the repair; it stops nothing."""
    facts = replace(GOOD, sqlite=version)
    assert level(facts, "sqlite") is (Level.WARNING if faulty else Level.OK)
    assert exit_code(facts, judge(facts)) is Code.DONE


@pytest.mark.parametrize(
    ("free", "wanted"), [(1 << 40, Level.OK), (100 << 20, Level.WARNING), (1000, Level.PROBLEM), (None, None)]
)
def test_space(free: int | None, wanted: Level | None) -> None:
    """Little space is warned of; none is a problem; where nobody can tell, nothing is said."""
    facts = replace(GOOD, folder=replace(GOOD.folder, free=free))
    assert [one.level for one in judge(facts) if one.check == "space"] == ([] if wanted is None else [wanted])


def test_packages() -> None:
    """A package that is not installed is warned of; a newer diskcache than the advisory names is told of as such."""
    facts = replace(GOOD, versions={**GOOD.versions, "httpx": None})
    assert level(facts, "versions") is Level.WARNING
    newer = replace(GOOD, versions={**GOOD.versions, "diskcache": "5.10.0"})
    assert (level(GOOD, "advisory"), level(newer, "advisory")) == (Level.NOTE, Level.OK)


def test_log() -> None:
    """A log that grows large is warned of."""
    files = replace(GOOD.files, log=100 << 20)
    assert level(replace(GOOD, files=files), "log") is Level.WARNING


def test_network_file_system(tmp_path: Path) -> None:
    """A network's file system is named and warned of, by what the kernel says of its mounts.

    The list of mounts is written here: nothing on this machine serves such a file system.
    """
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 1 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:9 / {tmp_path}/net rw - nfs4 server:/x rw\n")
    assert file_system(tmp_path / "net/cache", mounts) == "nfs4"
    assert network_file_system(tmp_path / "net/cache", mounts) == "nfs4"
    assert file_system(tmp_path / "netherlands", mounts) == "ext4"
    assert network_file_system(tmp_path / "netherlands", mounts) is None
    assert file_system(tmp_path, tmp_path / "no such list") is None
    facts = replace(GOOD, folder=replace(GOOD.folder, file_system="nfs4", over_network=True))
    told = next(one for one in judge(facts) if one.check == "file-system")
    assert (told.level, "nfs4" in told.message) == (Level.WARNING, True)
    assert exit_code(facts, judge(facts)) is Code.DONE
