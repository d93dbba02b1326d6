"""Folders that are not to be trusted, and file systems that SQLite is not to be trusted on."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import pytest

from embcache import CachedEmbedder, EmbcacheWarning, StoreError
from embcache.stores.folder import network_file_system

from tests.faults import running
from tests.faults.running import opened, unwarned
from tests.programs import NOBODY, unable
from tests.twins import right, same

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.upstream import Upstream

server = running.server


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def folder_for_all(cache: Path, _there: Path) -> Path:
    cache.chmod(0o777)
    return cache


def file_for_all(cache: Path, _there: Path) -> Path:
    (cache / "cache.db").chmod(0o666)
    return cache / "cache.db"


def folder_of_another(cache: Path, _there: Path) -> Path:
    os.chown(cache, NOBODY, -1)
    return cache


def file_of_another(cache: Path, _there: Path) -> Path:
    os.chown(cache / "cache.db", NOBODY, -1)
    return cache / "cache.db"


def linked_folder(cache: Path, there: Path) -> Path:
    cache.rename(there)
    cache.symlink_to(there)
    return cache


def linked_file(cache: Path, there: Path) -> Path:
    there.mkdir()
    (cache / "cache.db").rename(there / "real.db")
    (cache / "cache.db").symlink_to(there / "real.db")
    return cache / "cache.db"


def link_to_nothing(cache: Path, there: Path) -> Path:
    there.mkdir()
    (cache / "cache.db").unlink()
    (cache / "cache.db").symlink_to(there / "real.db")
    return cache / "cache.db"


def linked_marker(cache: Path, there: Path) -> Path:
    there.mkdir()
    (there / "precious").write_text("mine")
    for name in ("cache.db", "embcache.marker"):
        (cache / name).unlink()
    (cache / "embcache.marker").symlink_to(there / "precious")
    return cache


SPOILS = [
    folder_for_all,
    file_for_all,
    folder_of_another,
    file_of_another,
    linked_folder,
    linked_file,
    link_to_nothing,
    linked_marker,
]


@pytest.mark.parametrize("spoil", SPOILS)
def test_s22_a_folder_that_others_may_have_prepared(
    server: Upstream, tmp_path: Path, spoil: Callable[[Path, Path], Path]
) -> None:
    """What is a link, another user's or open to others is named and neither read nor written; the call goes on."""
    if "another" in spoil.__name__ and os.geteuid():
        unable("only root can give a file away")
    cache, there = tmp_path / "cache", tmp_path / "there"
    with opened(server, cache) as embedder:
        embedder.embed(["a", "b"])
    named = spoil(cache, there)
    before = content(tmp_path)
    server.forget()
    with (
        opened(server, cache, on_store_error="raise") as embedder,
        unwarned(),
        pytest.raises(StoreError, match=f"{named}( |$)"),
    ):
        embedder.embed(["a", "new"])
    with opened(server, cache) as embedder:
        with pytest.warns(EmbcacheWarning, match=str(named)):
            assert same(embedder.embed(["a", "new"]), right(["a", "new"]))
        assert embedder.session.store_errors > 0
        assert (embedder.session.hits, embedder.session.entries) == (0, 0)
    assert content(tmp_path) == before
    assert set(map(str, server.sent_inputs)) == {"a", "new"}


MOUNTS = """\
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
31 22 0:27 / {place} rw,relatime shared:2 - {kind} server:/export rw,vers=4.2
32 31 0:28 / {place}/local rw,relatime - tmpfs tmpfs rw
"""


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "fuse.sshfs", "fuse.s3fs"])
def test_s24_a_network_file_system(
    server: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """On a network file system nothing is made unless it is asked for, and the error names it; beside it, all works.

    What is really mounted here is no network: the kernel's list of mounts is a made-up one.
    """
    mounts, place = tmp_path / "mountinfo", tmp_path / "far"
    mounts.write_text(MOUNTS.format(place=place, kind=kind))
    monkeypatch.setattr("embcache.stores.disk.network_file_system", partial(network_file_system, mounts=mounts))

    def embed(folder: Path, **settings: bool | str) -> CachedEmbedder:
        with opened(server, folder, **settings) as embedder:
            assert same(embedder.embed(["a", "b"]), right(["a", "b"]))
        return embedder

    with unwarned(), pytest.raises(StoreError, match=rf"{place}/cache is on a network .*\({kind}\).*allow_network_fs"):
        embed(place / "cache", on_store_error="raise")
    with pytest.warns(EmbcacheWarning, match=kind):
        assert embed(place / "cache").session.store_errors == 2
    assert not place.exists()
    assert embed(place / "cache", on_store_error="raise", allow_network_fs=True).session.entries == 2
    assert embed(place / "local" / "cache", on_store_error="raise").session.entries == 2
    assert embed(tmp_path / "farther", on_store_error="raise").session.entries == 2
