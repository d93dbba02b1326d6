"""``embcache prune``: what is old, or of a model nobody asks any more, is removed, and the disk given back."""

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from embcache.choosing import parse_age, parse_size
from embcache.cli.common import AsJson, CacheDir, Code, Fault, Stopped, many, say, write_json, write_out
from embcache.cli.confirm import check_can_ask, confirm
from embcache.cli.spaces import BaseUrl, Epoch, Model, Provider, provider_of
from embcache.errors import StoreError

if TYPE_CHECKING:
    from embcache.choosing import Choice, Cut, Part
    from embcache.stores.disk import DiskStore


def prune(  # noqa: PLR0913 - its options
    *,
    older_than: Annotated[
        int | None,
        typer.Option(
            "--older-than",
            metavar="AGE",
            parser=parse_age,
            help="What was bought longer ago: 12h, 90d, 8w, 1y.",
        ),
    ] = None,
    max_size: Annotated[
        int | None,
        typer.Option(
            "--max-size",
            metavar="SIZE",
            parser=parse_size,
            help="The oldest, until the cache takes about so much of the disk: 500MB, 5GB.",
        ),
    ] = None,
    model: Model = None,
    provider: Provider = None,
    base_url: BaseUrl = None,
    epoch: Epoch = None,
    refusals: Annotated[
        bool,
        typer.Option("--refusals", help="No entries, but what is remembered of inputs that a server refused."),
    ] = False,
    project: Annotated[
        str | None,
        typer.Option(
            "--project",
            metavar="NAME",
            help="No entries, which all projects share, but the project's name in the accounts: what it has paid and "
            "saved is counted to no project from then on.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would go, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
    cache_dir: CacheDir = None,
) -> None:
    """Remove entries, and give the disk back what they took.

    Tells what goes and what it would cost to buy it again, asks on a terminal, and then removes it, a few hundred
    entries at a time, while others go on using the cache. Of the entries that --model, --provider, --base-url and
    --epoch leave, those go that --older-than or --max-size name; without either, all of them. Accounts stay. Entries
    that do not prove themselves stay too: embcache verify --repair removes them.
    """
    from embcache.choosing import Choice
    from embcache.config import disk_store
    from embcache.stores.folder import disk_usage

    choice = Choice(model, provider_of(provider, base_url), epoch)
    chosen = choice != Choice() or older_than is not None or max_size is not None
    kinds = (chosen, refusals, project is not None).count(True)
    if kinds > 1:
        raise Fault("give --refusals and --project alone: no entries go with them", Code.USAGE)
    if not kinds:
        raise Fault("say what is to go, such as --older-than 90d; embcache clear removes everything", Code.USAGE)
    if not dry_run:
        check_can_ask(yes=yes)
    store = disk_store(cache_dir)
    before = disk_usage(store.directory)
    try:
        task: _Task
        if project is not None:
            task = _Project(store, project)
        elif refusals:
            task = _Refusals(store)
        else:
            task = _Entries(store, choice, _cut(store, choice, older_than, max_size))
        tell = partial(say, always=True) if as_json else _print
        removed = _carry_out(task, [] if as_json and (yes or dry_run) else task.lines(), tell, ask=not yes, dry=dry_run)
    finally:
        store.close()
    after = disk_usage(store.directory)
    if as_json:
        facts = {"dry_run": dry_run, **task.facts(), "removed": removed}
        facts |= {"bytes_on_disk_before": before, "bytes_on_disk": after}
        write_json(facts)
    elif removed:
        _print(_removed(removed, before, after))


def _print(line: str) -> None:
    write_out(f"{line}\n".encode())


def _removed(count: int, before: int, after: int) -> str:
    from embcache.show import show_bytes

    return f"{count:,} removed; on disk: {show_bytes(before)} before, {show_bytes(after)} now"


def _cut(store: "DiskStore", choice: "Choice", older_than: int | None, max_size: int | None) -> "Cut":
    from embcache.choosing import EVERYTHING, NOTHING_OLDER, Cut
    from embcache.stores.pruning import room_for

    older = NOTHING_OLDER if older_than is None else time.time() - older_than
    if max_size is not None:
        return room_for(store, choice, max_size, older)
    return EVERYTHING if older_than is None else Cut(older)


class _Task(Protocol):
    """Something to remove."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def lines(self) -> list[str]:
        """Return what goes, as sentences."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what goes, as plain values."""
        ...

    def remove(self, removed: Callable[[int], object]) -> None:
        """Remove it; ``removed`` is told how many, time and again."""
        ...


class _Entries:
    """Entries that a cut takes."""

    def __init__(self, store: "DiskStore", choice: "Choice", cut: "Cut") -> None:
        from embcache.stores.pruning import survey

        self._going = store, choice, cut
        self._survey = survey(store, choice, cut)
        self.count = self._survey.total().entries

    def lines(self) -> list[str]:
        lines = [_line("to remove", self._survey.total(), self._survey.cost())]
        parts = self._survey.by_label()
        if len(parts) > 1:
            lines += [_line(f"  {label}", part, cost) for label, (part, cost) in parts.items()]
        if self._survey.damaged:
            damaged = many(self._survey.damaged, "damaged entry stays", "damaged entries stay")
            lines.append(f"{damaged}: embcache verify --repair removes what does not prove itself")
        return lines

    def facts(self) -> dict[str, Any]:
        parts = self._survey.by_label()
        return {
            **_facts(self._survey.total(), self._survey.cost()),
            "by_model": {label: _facts(part, cost) for label, (part, cost) in parts.items()},
            "damaged": self._survey.damaged,
        }

    def remove(self, removed: Callable[[int], object]) -> None:
        from embcache.stores.pruning import remove

        remove(*self._going, removed)


class _Refusals:
    """What is remembered of inputs that a server refused."""

    def __init__(self, store: "DiskStore") -> None:
        from embcache.stores.pruning import REFUSALS

        self._store = store
        self.count = len(store.keys_of(REFUSALS))

    def lines(self) -> list[str]:
        return [f"to remove: {many(self.count, 'remembered refusal')}"]

    def facts(self) -> dict[str, Any]:
        return {"refusals": self.count}

    def remove(self, removed: Callable[[int], object]) -> None:
        from embcache.stores.pruning import remove_refusals

        remove_refusals(self._store, removed)


class _Project:
    """The name of a project, in its accounts."""

    def __init__(self, store: "DiskStore", project: str) -> None:
        from embcache.choosing import accounts_of

        self._store = store
        accounts = store.totals().accounts
        self._names = accounts_of(project, accounts)
        self.count = len(self._names)
        self._billed = sum(accounts[name].get("billed_tokens", 0) for name in self._names)

    def lines(self) -> list[str]:
        accounts, tokens = many(self.count, "account"), many(self._billed, "token")
        return [f"to remove: the project's name from {accounts} ({tokens} billed), which count to no project then"]

    def facts(self) -> dict[str, Any]:
        return {"accounts": self.count, "billed_tokens": self._billed}

    def remove(self, removed: Callable[[int], object]) -> None:
        from embcache.stores.pruning import move_accounts

        move_accounts(self._store, self._names, removed)


def _carry_out(task: _Task, lines: list[str], tell: Callable[[str], object], *, ask: bool, dry: bool) -> int:
    """Tell ``lines``, ask, do it, and return how many were removed; where it ends early, say how far it came."""
    removed: list[int] = []
    try:
        for line in lines:
            tell(line)
        if task.count and not dry:
            confirm("Remove them?", yes=not ask)
            task.remove(removed.append)
    except (Stopped, StoreError):
        say(f"{sum(removed):,} of {task.count:,} removed; the same command again goes on", always=True)
        raise
    return sum(removed)


def _line(what: str, part: "Part", cost: float | None) -> str:
    from embcache.show import show_bytes, show_money

    line = f"{what}: {many(part.entries, 'entry', 'entries')}, {show_bytes(part.size)}"
    if part.entries:
        line += f"; to buy again: {many(part.tokens, 'token')} ({show_money(cost)})"
    if part.unknown:
        line += f", and those of {many(part.unknown, 'entry', 'entries')} of unknown cost"
    return line


def _facts(part: "Part", cost: float | None) -> dict[str, Any]:
    return {
        "entries": part.entries,
        "bytes": part.size,
        "tokens": part.tokens,
        "tokens_exact": part.exact,
        "entries_of_unknown_tokens": part.unknown,
        "cost": cost,
    }
