"""Somebody means harm: texts made to share a key, and rows, settings and triggers planted in the file."""

from __future__ import annotations

import logging
import pickle
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from embcache import keeper

from tests import reference
from tests.faults.watch import Watch, believing, faults, moved
from tests.stores.files import database
from tests.twins import right

if TYPE_CHECKING:
    from embcache.types import Space


def colliding(space: Space) -> tuple[str, str]:
    """Two texts that share a key in this space and differ in two letters."""
    one, other = reference.colliding_texts(space.provider, space.model, space.format, space.fields)
    assert one != other
    return one, other


# S02


def test_s02_a_colliding_pair(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    """Of two texts made to share a key, the one that is asked second gets its own vector, and it is warned of."""
    with watch.open() as one:
        theirs, ours = colliding(one.space)
        watch.embed(one, [theirs])
        watch.server.forget()
        watch.embed(one, [ours])
        assert watch.server.sent_inputs == [ours]
        assert moved(one) == {"wrong_text": 1}
        assert faults(one.stats()) == {"wrong_text": 1}
        watch.hits(one, [ours])
        watch.works(one)
    warned = watch.warnings()
    assert len(warned) == 1
    assert "wrong_text" in warned[0]
    logged = [record for record in caplog.records if "wrong_text" in record.getMessage()]
    assert [record.levelno for record in logged] == [logging.WARNING]
    assert theirs not in caplog.text
    assert ours not in caplog.text


def test_s02_the_pair_collides(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the proof of identity is taken away the other text's vector is served: the test above can fail."""
    monkeypatch.setattr(keeper, "open_entries", believing)
    with watch.open() as one:
        theirs, ours = colliding(one.space)
        watch.embed(one, [theirs])
        assert (one.embed([ours]) == right([theirs], watch.server.dims)).all()


# S11

ASKED = 30


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def row(statement: str) -> str:
    """Change every entry of the cache, and nothing else."""
    return f"UPDATE Cache SET {statement} WHERE tag IS NOT NULL"  # noqa: S608 - our own words


def setting(name: str, value: object) -> str:
    return f"INSERT OR REPLACE INTO Settings VALUES ('{name}', {value!r})"  # noqa: S608 - as above


# By what is planted. `:bomb` is a pickle that leaves a file, `:precious` the path of a file that must stay.
ROWS = {
    "a pickle as value": row("mode = 4, value = :bomb"),
    "a pickle as value of a raw row": row("value = :bomb"),
    "a pickle as key": row("raw = 0, key = :bomb || randomblob(4)"),
    "a pickle in a file": row("mode = 4, value = NULL, filename = :precious"),
    "a value in a file of bytes": row("mode = 2, value = NULL, filename = :precious"),
    "a value in a file of text": row("mode = 3, value = NULL, filename = :precious"),
    "a value in a file above": row("mode = 2, value = NULL, filename = '../precious'"),
    "a file beside a raw value": row("filename = :precious"),
    "a file that does not exist": row("mode = 2, value = NULL, filename = '../../nowhere'"),
    "text as value": row("value = 'text'"),
    "a number as value": row("value = 1e999"),
    "no value": row("value = NULL"),
    "no mode": row("mode = NULL"),
    "an expiry long past": row("expire_time = 1.0"),
}
SCHEMAS = {
    "a setting that moves the cache": setting("_directory", "/nowhere"),
    "a setting over a method": setting("get", "x"),
    "a setting over the statements": setting("_sql", "x"),
    "a setting of another kind of disk": setting("disk_x", 1),
    "a pragma as setting": setting("sqlite_writable_schema", 1),
    "a trigger that changes values": "CREATE TRIGGER evil AFTER INSERT ON Cache BEGIN"
    " UPDATE Cache SET value = zeroblob(300) WHERE rowid = NEW.rowid; END",
    "a trigger that removes entries": "CREATE TRIGGER evil AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END",
    "a trigger under a name of diskcache's": "DROP TRIGGER Settings_count_insert; CREATE TRIGGER Settings_count_insert"
    " AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END",
    "another table": "CREATE TABLE evil (value)",
    "a view": "CREATE VIEW evil AS SELECT * FROM Cache",
    "a view in place of the table": "ALTER TABLE Cache RENAME TO Other; CREATE VIEW Cache AS SELECT * FROM Other",
    "an index that computes": "CREATE INDEX evil ON Cache (abs(size))",
}
OBEYED = {
    "a policy that evicts": setting("eviction_policy", "least-recently-used") + ";" + setting("size_limit", 1),
    "a policy that is none": setting("eviction_policy", "x"),
    "a journal that is off": setting("sqlite_journal_mode", "off"),
    "writes that are not synchronous": setting("sqlite_synchronous", 0),
    "values in files": setting("disk_min_file_size", 0),
    "every value a pickle": setting("disk_pickle_protocol", 5),
}
"""Settings that diskcache knows, with values that do harm: they are overwritten, and the file stays."""


@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "while open"])
@pytest.mark.parametrize("planted", [*ROWS, *SCHEMAS, *OBEYED])
def test_s11_planted(watch: Watch, tmp_path: Path, planted: str, *, is_open: bool) -> None:
    """Whatever is planted in the file nothing is run, read or removed, every vector is right, and the cache heals."""
    precious, trace = tmp_path / "precious", tmp_path / "trace"
    precious.write_bytes(pickle.dumps(Bomb(trace)))
    texts, planting = watch.texts(ASKED), (ROWS | SCHEMAS | OBEYED)[planted]
    with ExitStack() as stack:
        first = stack.enter_context(watch.open())
        watch.embed(first, texts)
        if not is_open:
            first.close()
        plant(watch.folder, planting, {"bomb": pickle.dumps(Bomb(trace)), "precious": str(precious)})
        one = first if is_open else stack.enter_context(watch.open())
        watch.embed(one, texts)
        watch.embed(one, [*texts, "new"])
        if not is_open:
            watch.hits(one, [*texts, "new"])
            assert moved(one).get("quarantined", 0) == (planted in SCHEMAS)
            watch.works(one)
        if planted in OBEYED:
            assert watch.server.sent_inputs[: ASKED + 1] == [*texts, "new"], "something was lost"
    with watch.open() as later:
        watch.embed(later, texts)
        watch.hits(later, texts)
        watch.works(later)
    assert not trace.exists(), "a pickle was run"
    pickle.loads(precious.read_bytes())  # noqa: S301 - our own, and what stood in the file
    assert trace.exists(), "the bomb is none"
    assert list(tmp_path.glob("**/*.val")) == []


def plant(folder: Path, statements: str, values: dict[str, object]) -> None:
    """Carry out statements on the file, with nobody's checks."""
    with database(folder) as connection:
        connection.execute("PRAGMA writable_schema = OFF").fetchall()
        for statement in statements.replace("; END", "\0 END").split(";"):
            told = statement.replace("\0", ";")
            named = {name: value for name, value in values.items() if f":{name}" in told}
            connection.execute(told, named)
