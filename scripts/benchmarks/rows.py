"""The rows of the table: what is prepared, what is measured side by side, and the goal."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from statistics import median
from typing import TYPE_CHECKING, Any

from scripts.benchmarks import corpus
from scripts.benchmarks.ours import TIER, has
from scripts.benchmarks.run import PYTHONS, Failed, interleaved
from scripts.benchmarks.table import Line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scripts.benchmarks.run import Machine

MEBIBYTE = 1 << 20
MICROSECONDS = 1e6
DAYS, MODELS = 400, 5
"""Of the accounts in the store whose figures are told."""
CONCURRENCY = 4
"""Requests in flight: an embedder's default."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything.

    Attributes:
        warm: texts in the store of the warm rows.
        peers: how many of them a slow peer holds and is asked for; its time for a text hardly depends on it.
        cold: texts in a cold call.
        slow: texts bought of the slow server, ``batch`` a request, ``wait`` milliseconds each.
        large: entries of the large store.
        hundred: entries of the store for memory and statistics.
        singles: texts asked for one by one.
    """

    warm: int = 10_000
    peers: int = 10_000
    cold: int = 2_048
    slow: int = 20_000
    batch: int = 64
    wait: int = 50
    large: int = 1_000_000
    hundred: int = 100_000
    singles: int = 1_000

    def at_most(self, size: int) -> Sizes:
        """Return the same with nothing larger than ``size``."""
        smaller = {
            name: min(getattr(self, name), size)
            for name in ("warm", "peers", "cold", "slow", "large", "hundred", "singles")
        }
        return replace(self, **smaller)


QUICK = Sizes(peers=1_000, slow=5_120, large=100_000)


class Bench:
    """What the rows share: sizes, rounds, and stores that are filled once."""

    def __init__(self, machine: Machine, sizes: Sizes, rounds: int, *, quick: bool, say: Callable[[str], None]) -> None:
        """Prepare nothing yet."""
        self.machine = machine
        self.sizes = sizes
        self.count = rounds
        self.quick = quick
        self.say = say
        self._calls = 0

    def rounds(self, sides: dict[str, Callable[[], float]], rounds: int | None = None) -> dict[str, list[float]]:
        """Measure all sides in turn, in each round."""
        return interleaved(sides, rounds or self.count, self.say)

    def texts(self, name: str, count: int, first: int = 0) -> Path:
        """Return the file of these texts, written when first asked for."""
        path = self.machine.path(f"{name}.txt")
        return path if path.exists() else corpus.save(path, corpus.texts(count, first))

    def new_folder(self) -> Path:
        """Return a folder that is not there yet."""
        self._calls += 1
        return self.machine.path(f"cold-{self._calls}")

    @cached_property
    def warm_texts(self) -> Path:
        """The texts of the warm rows."""
        return self.texts("warm", self.sizes.warm)

    @cached_property
    def store(self) -> Path:
        """The store of the warm rows, bought from the server and closed."""
        self.say("filling embcache's store")
        folder = self.machine.path("store")
        self.machine.do("ours.fill", texts=self.warm_texts, folder=folder, url=self.machine.url)
        return folder

    @cached_property
    def hundred_texts(self) -> Path:
        """The texts of the store for memory and statistics."""
        return self.texts("hundred", self.sizes.hundred)

    @cached_property
    def hundred(self) -> Path:
        """The store for memory and statistics."""
        return self.fill_large(self.hundred_texts, self.sizes.hundred)

    def fill_large(self, texts: Path, count: int) -> Path:
        """Return a store of ``count`` texts, filled without a server."""
        self.say(f"filling a store of {count:,} entries")
        folder = self.machine.path(f"store-{texts.stem}")
        self.machine.do("ours.fill_large", texts=texts, folder=folder, count=count)
        return folder

    def seconds(self, job: str, **arguments: object) -> float:
        """Return the seconds a text that a job measured."""
        facts = self.machine.do(job, **arguments)
        return float(facts["seconds"] / facts["n"])


def ratios(over: list[float], under: list[float]) -> list[float]:
    """Return the ratio of each round."""
    return [above / below for above, below in zip(over, under, strict=True)]


def _each(measured: dict[str, list[float]], unit: str = "µs a text", scale: float = MICROSECONDS) -> str:
    return ", ".join(f"{name} {median(values) * scale:,.2f} {unit}" for name, values in measured.items())


# Warm


@dataclass(frozen=True, slots=True, eq=False)
class Peer:
    """Something that people use today, in the warm row.

    Attributes:
        name: as the table calls it.
        job: the room and the first word of its jobs.
        place: where it keeps what it keeps; empty where it cannot run.
        goal: how many times faster embcache is to be; None where it is for information.
        slow: whether a part of the texts is enough to know what one takes.
        settings: what filling it takes besides.
    """

    name: str
    job: str
    place: str
    goal: float | None = None
    slow: bool = False
    settings: dict[str, Any] = field(default_factory=dict[str, Any])

    def why_not(self, bench: Bench) -> str:
        """Return why it cannot be measured, nothing if it can."""
        if bench.quick and self.job == "litellm.litellm":
            return "not with --quick: filling it takes a minute"
        if not bench.machine.has(self.job.split(".")[0]):
            return "not installed"
        return "" if self.place else "there is no redis-server"

    def fill(self, bench: Bench) -> Callable[[], str]:
        """Have it begin to store the texts; what is returned waits, and tells why it could not, nothing if it could."""
        process = bench.machine.start(f"{self.job}_fill", texts=self._texts(bench), place=self.place, **self.settings)

        def wait() -> str:
            bench.say(f"filling {self.name}")
            try:
                bench.machine.finish(process)
            except Failed as failure:
                return f"could not be filled: {failure}"
            return ""

        return wait

    def read(self, bench: Bench) -> Callable[[], float]:
        """Return what measures it."""
        texts, count = self._texts(bench), bench.sizes.peers if self.slow else bench.sizes.warm
        return lambda: bench.seconds(f"{self.job}_warm", texts=texts, place=self.place, count=count)

    def _texts(self, bench: Bench) -> Path:
        return bench.texts("slow-peers", bench.sizes.peers) if self.slow else bench.warm_texts


def _peers(machine: Machine) -> list[Peer]:
    memoize, langchain = "peers.memoize", "peers.langchain"
    return [
        Peer("LangChain, files", langchain, str(machine.path("langchain")), 45, slow=True),
        Peer("diskcache.memoize, arrays", memoize, str(machine.path("arrays")), 11, settings={"lists": False}),
        Peer("diskcache.memoize, lists of floats", memoize, str(machine.path("lists")), 11, settings={"lists": True}),
        Peer("LangChain, Redis", langchain, machine.redis or "", slow=True),
        Peer("RedisVL", "peers.redisvl", machine.redis or "", slow=True),
        Peer(
            "LiteLLM, disk", "litellm.litellm", str(machine.path("litellm")), slow=True, settings={"url": machine.url}
        ),
    ]


def warm(bench: Bench) -> list[Line]:
    """Many texts in one call, in a fresh process."""
    sizes, machine, texts, store = bench.sizes, bench.machine, bench.warm_texts, bench.store
    what = f"embed() of {sizes.warm:,} warm texts, a text"
    sides: dict[str, Callable[[], float]] = {
        "embcache": lambda: bench.seconds("ours.warm", texts=texts, folder=store, count=sizes.warm)
    }
    limits = {"lmdb": "LMDB, our codec and proofs", "mapped": "hash and gather, mapped file"}
    machine.do("limits.lmdb_fill", store=store, folder=machine.path("lmdb"))
    machine.do("limits.mapped_fill", texts=texts, folder=machine.path("mapped"))
    for job, name in limits.items():
        folder = machine.path(job)
        sides[name] = partial(bench.seconds, f"limits.{job}_warm", texts=texts, folder=folder, count=sizes.warm)
    peers = {peer: Line("warm", what, f"{peer.name}: times faster", at_least=peer.goal) for peer in _peers(machine)}
    filling: dict[Peer, Callable[[], str]] = {}
    for peer, line in peers.items():
        line.note = peer.why_not(bench)
        if not line.note:
            filling[peer] = peer.fill(bench)
    for peer, wait in filling.items():
        peers[peer].note = wait()
        if not peers[peer].note:
            sides[peer.name] = peer.read(bench)
    measured = bench.rounds(sides)
    ours = measured["embcache"]
    lines = [Line("warm", what, name, ratios(ours, measured[name])) for name in limits.values()]
    lines[0].at_most = 1.8
    lines[0].sides = _each(measured)
    if sizes.peers < sizes.warm:
        lines[0].note = f"LangChain, RedisVL and LiteLLM hold, and were asked for, {sizes.peers:,} texts"
    for peer, line in peers.items():
        if peer.name in measured:
            line.values = ratios(measured[peer.name], ours)
    return lines + list(peers.values())


def one(bench: Bench) -> list[Line]:
    """One text a call."""
    sizes, machine, texts = bench.sizes, bench.machine, bench.warm_texts
    count = min(2000, sizes.warm)
    what = "embed() of one warm text, p50"
    lines: list[Line] = []
    store = bench.store
    sides: dict[str, Callable[[], float]] = {
        "embcache": lambda: machine.do("ours.one", texts=texts, folder=store, count=count)["seconds"]
    }
    if has("memory_size"):
        sides["with memory tier"] = lambda: machine.do(
            "ours.one", texts=texts, folder=store, count=count, memory_size=TIER
        )["seconds"]
    for kind in ("arrays", "lists"):
        name = "diskcache.memoize, " + ("arrays" if kind == "arrays" else "lists of floats")
        lines += [
            Line("one", what, name, at_most=0.5, note="not installed"),
            Line("one", what + ", with the memory tier", name, at_most=0.1, note="there is no memory_size= yet"),
        ]
        if not machine.has("peers"):
            continue
        place = str(machine.path(kind))
        if not machine.path(kind).exists():
            bench.say(f"filling {name}")
            machine.do("peers.memoize_fill", texts=texts, place=place, lists=kind == "lists")

        def read(place: str = place) -> float:
            return float(machine.do("peers.memoize_one", texts=texts, place=place, count=count)["seconds"])

        sides[name] = read
    measured = bench.rounds(sides)
    for line in lines:
        ours = measured.get("with memory tier" if "tier" in line.what else "embcache")
        if ours and line.against in measured:
            line.values, line.note = ratios(ours, measured[line.against]), ""
    lines[0].sides = _each(measured)
    return lines


def tier(bench: Bench) -> list[Line]:
    """The memory tier over many texts."""
    sizes, texts = bench.sizes, bench.warm_texts
    line = Line(
        "tier", f"embed() of {sizes.warm:,} texts in the memory tier", "a dict of arrays, numpy.stack", at_most=1.5
    )
    if not has("memory_size"):
        line.note = "there is no memory_size= yet"
        return [line]
    store = bench.store
    measured = bench.rounds(
        {
            "embcache": lambda: bench.seconds("ours.tier", texts=texts, folder=store, count=sizes.warm),
            "dict": lambda: bench.seconds("limits.dict_stack", texts=texts, count=sizes.warm),
        }
    )
    line.values, line.sides = ratios(measured["embcache"], measured["dict"]), _each(measured)
    return [line]


# Cold


def cold(bench: Bench) -> list[Line]:
    """Many new texts in one request."""
    sizes, machine = bench.sizes, bench.machine
    count = sizes.cold
    texts, url = bench.texts("cold", 2 * count), machine.url
    jobs: dict[str, Callable[[], dict[str, Any]]] = {
        "embcache": lambda: machine.do("ours.cold", texts=texts, folder=bench.new_folder(), url=url, count=count),
        "httpx": lambda: machine.do("limits.httpx_cold", texts=texts, url=url, count=count),
    }
    if machine.has("peers"):
        jobs["openai"] = lambda: machine.do("peers.openai_cold", texts=texts, url=url, count=count)
    kept: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}

    def keep(name: str) -> float:
        kept[name].append(jobs[name]())
        return 0.0

    bench.rounds({name: lambda name=name: keep(name) for name in jobs})  # type: ignore[misc]
    part = {which: {name: [facts[which] for facts in kept[name]] for name in jobs} for which in ("seconds", "first")}
    lines: list[Line] = []
    for which, words in (("seconds", ""), ("first", ", first call of the process")):
        measured = part[which]
        what = f"embed() of {count:,} new texts, stored{words}"
        plain = Line("cold", what, "openai client, no cache", at_most=0.65, note="not installed")
        if "openai" in measured:
            plain.values, plain.note = ratios(measured["embcache"], measured["openai"]), ""
            plain.sides = _each(measured, "ms", 1e3)
        bare = Line("cold", what, "bare httpx, json, base64", ratios(measured["embcache"], measured["httpx"]))
        lines += [plain, bare]
    closing = median([facts["close"] for facts in kept["embcache"]])
    lines[0].sides += f"; close() afterwards {closing * 1e3:,.0f} ms"
    return lines


def slow(bench: Bench) -> list[Line]:
    """Many new texts in many requests of a server that takes its time."""
    sizes, machine = bench.sizes, bench.machine
    texts, url = bench.texts("slow", sizes.slow + 1), machine.slow_url(sizes.wait)
    waves = -(-sizes.slow // sizes.batch // CONCURRENCY)
    needed = waves * sizes.wait / 1000
    common = {"texts": texts, "url": url, "count": sizes.slow, "batch_size": sizes.batch}
    measured = bench.rounds(
        {
            "embcache": lambda: machine.do("ours.slow", folder=bench.new_folder(), **common)["seconds"],
            "bare sockets": lambda: machine.do("limits.bare_slow", concurrency=CONCURRENCY, **common)["seconds"],
        }
    )
    what = f"embed() of {sizes.slow:,} new texts, {sizes.batch} a request of {sizes.wait} ms"
    ours, bare = measured["embcache"], measured["bare sockets"]
    waiting = f"{waves} waits, {CONCURRENCY} at a time"
    return [
        Line(
            "slow",
            what,
            "what the server needs: bare sockets, nothing decoded",
            ratios(ours, bare),
            at_most=1.15,
            sides=_each(measured, "s", 1.0),
        ),
        Line("slow", what, waiting, [seconds / needed for seconds in ours]),
        Line("slow", "bare sockets, nothing decoded", waiting, [seconds / needed for seconds in bare]),
    ]


# Large


def large(bench: Bench) -> list[Line]:
    """Random hits in a large store."""
    sizes, machine = bench.sizes, bench.machine
    if sizes.large == sizes.hundred:
        texts, store = bench.hundred_texts, bench.hundred
    else:
        texts = bench.texts("large", sizes.large)
        store = bench.fill_large(texts, sizes.large)
    bench.say(f"filling LMDB with {sizes.large:,} entries")
    folder = machine.path("lmdb-large")
    machine.do("limits.lmdb_fill", store=store, folder=folder)
    count = min(sizes.warm, sizes.large)
    asked = machine.path("asked.txt")
    step = sizes.large // count
    # Spread over the whole of it, in no order that the store knows.
    chosen = [text for number, text in enumerate(corpus.stream(texts)) if number % step == 0][:count]
    corpus.save(asked, sorted(chosen, key=corpus.place))
    small = bench.store
    sides: dict[str, Callable[[], float]] = {
        "embcache": lambda: bench.seconds("ours.warm", texts=asked, folder=store, count=count),
        "LMDB": lambda: bench.seconds("limits.lmdb_warm", texts=asked, folder=folder, count=count),
        f"embcache, {sizes.warm:,} entries": lambda: bench.seconds(
            "ours.warm", texts=bench.warm_texts, folder=small, count=sizes.warm
        ),
    }
    for side in sides.values():
        side()  # so that what is read is in the page cache
    measured = bench.rounds(sides)
    ours, theirs, of_small = measured.values()
    what = f"{count:,} random hits among {sizes.large:,}"
    note = "" if sizes.large >= Sizes().large else f"the goal is for {Sizes().large:,} entries: run without --quick"
    return [
        Line("large", what, "LMDB of the same size", ratios(ours, theirs), at_most=2, sides=_each(measured), note=note),
        Line("large", what, f"a store of {sizes.warm:,}", ratios(ours, of_small), at_most=2.5, note=note),
    ]


def memory(bench: Bench) -> list[Line]:
    """The memory that a large call takes, above its result."""
    count = bench.sizes.hundred
    texts, store = bench.hundred_texts, bench.hundred

    def peak() -> float:
        return float(bench.machine.do("ours.memory", texts=texts, folder=store, count=count)["bytes"])

    measured = bench.rounds({"embcache": peak}, min(3, bench.count))
    values = [size / MEBIBYTE for size in measured["embcache"]]
    return [Line("memory", f"peak of embed() of {count:,} warm texts", "above its result", values, "MiB", at_most=64)]


def stream(bench: Bench) -> list[Line]:
    """The memory that `embed_iter` takes over a long input and over a short one."""
    count = bench.sizes.hundred
    line = Line(
        "stream", f"peak of embed_iter() over {count:,} texts", f"over {count // 5:,}", unit="MiB more", at_most=8
    )
    if not has("embed_iter"):
        line.note = "there is no embed_iter() yet"
        return [line]
    texts, store = bench.hundred_texts, bench.hundred

    def peak(count: int) -> float:
        return float(bench.machine.do("ours.stream", texts=texts, folder=store, count=count)["bytes"])

    measured = bench.rounds({"long": lambda: peak(count), "short": lambda: peak(count // 5)}, min(3, bench.count))
    line.values = [(a - b) / MEBIBYTE for a, b in zip(measured["long"], measured["short"], strict=True)]
    line.sides = _each(measured, "MiB", 1 / MEBIBYTE)
    return [line]


def disk(bench: Bench) -> list[Line]:
    """The bytes on disk for an entry, everything counted."""
    total = sum(path.stat().st_size for path in bench.store.rglob("*") if path.is_file())
    what = f"bytes on disk for an entry, of {bench.sizes.warm:,}, after close()"
    return [Line("disk", what, "all files of the cache", [total / bench.sizes.warm], "bytes", at_most=4900)]


# Together


def readers(bench: Bench) -> list[Line]:
    """Two processes that read at the same time."""
    sizes, machine = bench.sizes, bench.machine
    common = {"texts": bench.warm_texts, "folder": bench.store, "count": sizes.warm, "times": 25}

    def throughput(processes: int) -> float:
        facts = machine.together("ours.reader", processes, **common)
        return float(sum(fact["n"] for fact in facts) / max(fact["seconds"] for fact in facts))

    measured = bench.rounds({"one": lambda: throughput(1), "two": lambda: throughput(2)})
    return [
        Line(
            "readers",
            "texts a second read by two processes",
            "by one",
            ratios(measured["two"], measured["one"]),
            at_least=1.7,
            sides=_each(measured, "texts a second", 1.0),
        )
    ]


def tasks(bench: Bench) -> list[Line]:
    """Single texts asked for by many tasks at the same time."""
    sizes, machine = bench.sizes, bench.machine
    count = sizes.singles
    common = {"texts": bench.warm_texts, "folder": bench.store, "count": count - 1}
    measured = bench.rounds(
        {
            "tasks": lambda: bench.seconds("ours.tasks", **common),
            "one after the other": lambda: bench.seconds("ours.singles", **common),
        }
    )
    wait = 20
    texts, url = bench.texts("tasks", count + 1), machine.slow_url(wait)

    def requests() -> float:
        return float(machine.do("ours.tasks", texts=texts, folder=bench.new_folder(), count=count, url=url)["requests"])

    asked = bench.rounds({"requests": requests}, 1 if bench.quick else min(3, bench.count))["requests"]
    return [
        Line(
            "tasks",
            f"{count:,} tasks, one warm text each, speed",
            "one after the other, without tasks",
            ratios(measured["one after the other"], measured["tasks"]),
            at_least=1,
            sides=_each(measured),
        ),
        Line(
            "tasks",
            f"{count:,} tasks, one new text each, a server of {wait} ms",
            "requests sent",
            asked,
            "requests",
            at_most=count / 10,
        ),
    ]


def start(bench: Bench) -> list[Line]:
    """Whole processes, from nothing to their end."""
    machine, python = bench.machine, PYTHONS["ours"]
    lines = [
        Line("start", "python -c 'import embcache'", "python -c 'import numpy'", at_most=1.5),
        Line("start", f"embcache stats, {bench.sizes.hundred:,} entries", "python -c 'import numpy'", at_most=3),
    ]
    store = str(bench.hundred)
    ours: dict[str, Callable[[], float]] = {
        "import embcache": lambda: machine.whole([python, "-c", "import embcache"]),
        "embcache stats": lambda: machine.whole([python.with_name("embcache"), "stats"], EMBCACHE_DIR=store),
    }
    sides: dict[str, Callable[[], float]] = {
        "import numpy": lambda: machine.whole([python, "-c", "import numpy"]),
        "python alone": lambda: machine.whole([python, "-c", "pass"]),
    }
    for line, (name, side) in zip(lines, ours.items(), strict=True):
        try:
            side()  # so that files are in the page cache, and bytecode is compiled
        except (Failed, OSError) as failure:
            line.note = f"it does not work: {failure}"
        else:
            sides[name] = side
    measured = bench.rounds(sides, bench.count * 2)
    for line, name in zip(lines, ours, strict=True):
        if name in measured:
            line.values = ratios(measured[name], measured["import numpy"])
    lines[0].sides = _each(measured, "ms", 1e3)
    return lines


def stats(bench: Bench) -> list[Line]:
    """The figures of a large store with a long life, as a whole process tells them."""
    machine, entries = bench.machine, bench.sizes.large
    folder = machine.path("book")
    bench.say(f"filling a store of {entries:,} entries and the accounts of {DAYS} days")
    machine.do("ours.fill_book", folder=folder, entries=entries, days=DAYS, models=MODELS)
    command = [PYTHONS["ours"].with_name("embcache"), "stats"]
    measured = bench.rounds({"embcache stats": lambda: machine.whole(command, EMBCACHE_DIR=str(folder))})
    what = f"embcache stats, {entries:,} entries, {DAYS} days, {MODELS} models"
    return [Line("stats", what, "", measured["embcache stats"], "s", at_most=1)]


ROWS: dict[str, tuple[Callable[[Bench], list[Line]], str]] = {
    "warm": (warm, "lmdb peers litellm redis"),
    "one": (one, "peers"),
    "tier": (tier, ""),
    "cold": (cold, "peers"),
    "slow": (slow, ""),
    "large": (large, "lmdb"),
    "memory": (memory, ""),
    "stream": (stream, ""),
    "disk": (disk, ""),
    "readers": (readers, ""),
    "tasks": (tasks, ""),
    "start": (start, ""),
    "stats": (stats, ""),
}
"""Each row with what it needs besides embcache."""
WAITING = frozenset({"slow", "readers"})
"""Rows that are about what goes on at the same time."""
