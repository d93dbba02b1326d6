"""What may be read and not written: by its mode, by its mount, or because the user said so."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.watch import KEY, Watch, moved
from tests.programs import NOBODY, mounted, output, python, tool

if TYPE_CHECKING:
    from collections.abc import Iterator

# Ends as a kill does, so that the log is not folded into the file.
BUYS = """
    import os, sys
    from embcache import CachedEmbedder

    texts = sys.stdin.read().splitlines()
    one = CachedEmbedder("m", base_url=sys.argv[1], api_key=sys.argv[2], cache_dir=sys.argv[3])
    one.embed(texts)
    print("kept", flush=True)
    os._exit(0)
"""


def buy(watch: Watch, texts: list[str], *, log: bool) -> None:
    """Have the folder hold these texts, with the log still beside the file or folded into it."""
    if log:
        assert output(python(BUYS, watch.server.base_url, KEY, watch.folder), "\n".join(texts)) == "kept"
        assert (watch.folder / "cache.db-wal").stat().st_size
    else:
        with watch.open() as one:
            watch.embed(one, texts)
    watch.server.forget()


def content(folder: Path) -> dict[str, bytes]:
    """What is in the folder, but for the index of the log, which SQLite writes for itself also to read."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}


LOGS = pytest.mark.parametrize("log", [False, True], ids=["closed", "with a log"])


@LOGS
def test_s06_read_only_changes_nothing(watch: Watch, *, log: bool) -> None:
    """With `read_only=True` hits are served and misses bought, and no byte of file or log is changed, nor one added."""
    texts = watch.texts(20)
    buy(watch, texts, log=log)
    before = content(watch.folder)
    with watch.open(read_only=True) as one:
        watch.hits(one, texts)
        watch.embed(one, [*texts, "new"])
        watch.embed(one, ["new"])
        assert watch.server.sent_inputs == ["new", "new"]
        assert moved(one) == {}
    after = content(watch.folder)
    assert {name: after.pop(name) for name in before} == before
    assert after in ({}, {"cache.db-wal": b""}), "SQLite may make an empty log to read the file"
    with watch.open() as one:
        watch.hits(one, texts)
        watch.works(one)


def test_s06_read_only_without_a_cache(watch: Watch) -> None:
    """With `read_only=True` and no cache misses are bought, and not even the folder is made."""
    with watch.open(read_only=True) as one:
        watch.embed(one, watch.texts(3))
        assert moved(one) == {}
    assert not watch.folder.exists()


# A mount


@LOGS
def test_s06_a_read_only_mount(watch: Watch, tmp_path: Path, *, log: bool) -> None:
    """From a file system that is mounted for reading alone hits are served; a miss is bought, counted and warned of."""
    texts = watch.texts(20)
    buy(watch, texts, log=log)
    before, own, view = content(watch.folder), watch.folder, tmp_path / "view"
    with mounted(view, "--bind", "-o", "ro", str(own)):
        watch.folder = view
        with watch.open() as one:
            watch.hits(one, texts)
            watch.embed(one, [*texts, "new"])
            assert watch.server.sent_inputs == ["new"]
            assert moved(one) == {"store_errors": 1}
            assert len(watch.warnings()) == 1
            assert content(own) == before
            subprocess.run([tool("mount"), "-o", "remount,bind,rw", view], check=True)
            watch.embed(one, ["new"])
            watch.hits(one, [*texts, "new"])
            watch.works(one)
    watch.folder = own


# Modes

# Root may write whatever the mode, so the child becomes nobody; what it needs it has loaded before, from wherever that
# is. It then opens up what was shut, and goes on.
ASKS = f"""
    import os, sys, warnings
    from pathlib import Path
    from embcache import CachedEmbedder, EmbcacheWarning
    from tests.faults.watch import moved
    from tests.twins import right, same

    url, key, folder, warm = sys.argv[1:]
    texts = sys.stdin.read().splitlines()

    def open(folder):
        return CachedEmbedder("m", base_url=url, api_key=key, cache_dir=folder)

    def ask(texts):
        result = one.embed_result(texts)
        assert same(result.vectors, right(texts, 64))
        print(result.hits, result.misses, moved(one), len(warned))

    with open(warm) as one:
        one.embed("warm")
        one.embed("warm")
    if os.geteuid() == 0:
        os.setgid({NOBODY})
        os.setuid({NOBODY})
    with warnings.catch_warnings(record=True) as warned, open(folder) as one:
        warnings.simplefilter("always")
        ask(texts)
        ask([*texts, "new"])
        print(*sorted(path.name for path in Path(folder).iterdir()))
        sys.stdout.flush()
        os.chmod(folder, 0o700)
        for path in Path(folder).iterdir():
            path.chmod(0o600)
        ask([*texts, "new"])
        ask([*texts, "new"])
        print(all(warning.category is EmbcacheWarning for warning in warned))
"""


@pytest.fixture
def open_place(watch: Watch) -> Iterator[Path]:
    """A folder that anybody may enter, as pytest's own may not be, with the cache in it."""
    with tempfile.TemporaryDirectory(prefix="embcache-test-") as made:
        place = Path(made)
        place.chmod(0o755)
        watch.folder = place / "cache"
        yield place
        watch.close()
        watch.check_secrets("")  # while there are files to look into


def shut(folder: Path, *, folder_too: bool) -> None:
    """Give a cache to nobody, who may then read and not write it."""
    for path in (*folder.iterdir(), folder):
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        if path != folder:
            path.chmod(0o400)
        elif folder_too:
            path.chmod(0o500)


@LOGS
@pytest.mark.parametrize("folder_too", [True, False], ids=["folder and files", "files alone"])
def test_s06_modes_that_allow_reading_alone(watch: Watch, open_place: Path, *, folder_too: bool, log: bool) -> None:
    """Where files, or the folder too, may only be read hits are served, misses bought and counted, nothing changed."""
    texts = watch.texts(20)
    buy(watch, texts, log=log)
    shut(watch.folder, folder_too=folder_too)
    before = content(watch.folder)
    told = output(
        python(ASKS, watch.server.base_url, KEY, watch.folder, open_place / "warm"), "\n".join(texts)
    ).splitlines()
    assert told[:2] == ["20 0 {} 0", "20 1 {'store_errors': 1} 1"]
    assert set(told[2].split()) - {"cache.db-shm", "cache.db-wal"} == set(before) - {"cache.db-wal"}
    assert told[3:] == ["20 1 {'store_errors': 1} 1", "21 0 {'store_errors': 1} 1", "True"]
    assert watch.server.sent_inputs == ["warm", "new", "new"]


def test_s06_a_folder_that_allows_reading_alone_and_has_no_cache(watch: Watch, open_place: Path) -> None:
    """Where there is no cache and none can be made all is bought, counted and warned of; once it can be, it is made."""
    texts = watch.texts(5)
    watch.folder.mkdir()
    shut(watch.folder, folder_too=True)
    told = output(
        python(ASKS, watch.server.base_url, KEY, watch.folder, open_place / "warm"), "\n".join(texts)
    ).splitlines()
    assert told == [
        "0 5 {'store_errors': 5} 1",
        "0 6 {'store_errors': 11} 1",
        "",
        "0 6 {'store_errors': 11} 1",
        "6 0 {'store_errors': 11} 1",
        "True",
    ]
