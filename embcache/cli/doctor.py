"""``embcache doctor``: what the cache stands on, looked at and judged."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING

import typer

from embcache.cli.common import AsJson, BaseUrl, CacheDir, ProviderChoice, write_json, write_out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embcache.cli.checkup import Facts, Finding, ProviderFacts
    from embcache.providers.base import Provider
    from embcache.providers.openai_compatible import OpenAICompatibleProvider

PACKAGES = ("embcache", "diskcache", "numpy", "httpx")
SECONDS_TO_ANSWER = 5.0
STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "bold red"}


def doctor(
    *,
    as_json: AsJson = False,
    provider: ProviderChoice = None,
    base_url: BaseUrl = None,
    cache_dir: CacheDir = None,
) -> None:
    """Look at what the cache stands on.

    Versions, folder, rights, file system, free space, SQLite, the state of the cache, and whether the provider
    answers; it is asked for nothing that is billed. Changes nothing. Exit code 0 unless something stops embcache;
    warnings do not count.
    """
    from embcache.cli.checkup import exit_code, judge, worst
    from embcache.report import is_terminal

    facts = _gather(cache_dir, None if provider is None else provider.value, base_url)
    findings = judge(facts)
    if as_json:
        told = [
            {"check": one.check, "level": one.level, "message": one.message, "advice": one.advice} for one in findings
        ]
        write_json({"level": worst(findings), "findings": told})
    elif is_terminal(sys.stdout):
        _show_table(findings)
    else:
        write_out("".join(line + "\n" for line in _lines(findings)).encode())
    if code := exit_code(facts, findings):
        raise typer.Exit(code)


def _gather(cache_dir: Path | None, provider: str | None, base_url: str | None) -> Facts:
    """Look at everything; the one place that does.

    Raises:
        ConfigError: an option of the command cannot work.
    """
    import platform
    import sqlite3

    from embcache.cli.checkup import Facts
    from embcache.config import cache_folder
    from embcache.stores.state import FilesState, see_files, see_folder

    asked = _see_provider(provider, base_url)  # first, since it may be wrong usage
    directory = cache_folder(cache_dir)
    folder = see_folder(directory)
    return Facts(
        versions={name: _version(name) for name in PACKAGES},
        python=platform.python_version(),
        sqlite=sqlite3.sqlite_version_info,
        folder=folder,
        files=FilesState() if folder.refused else see_files(directory),
        provider=asked,
    )


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _see_provider(provider: str | None, base_url: str | None) -> ProviderFacts:
    """Look at who computes vectors, and whether they are there.

    Raises:
        ConfigError: an option of the command cannot work; what the environment says wrongly is a fact.
    """
    from embcache.cli.checkup import ProviderFacts
    from embcache.config import make_provider
    from embcache.errors import ConfigError
    from embcache.providers.openai_compatible import OpenAICompatibleProvider

    try:
        chosen = make_provider(provider, base_url=base_url)
    except ConfigError as error:
        if provider is not None or base_url is not None:
            raise
        return ProviderFacts(None, failure=str(error))
    if not isinstance(chosen, OpenAICompatibleProvider):
        return ProviderFacts(chosen.id, is_local=True, failure=_failure_of(chosen))
    status, failure = _reach(chosen)
    return ProviderFacts(chosen.id, has_key=chosen.has_key, lacks_key=chosen.lacks_key, status=status, failure=failure)


def _reach(provider: OpenAICompatibleProvider) -> tuple[int | None, str | None]:
    """Return the status of the server's answer, or why there is none."""
    import threading

    from embcache.errors import EmbcacheError

    told: list[tuple[int | None, str | None]] = []

    def ask() -> None:
        try:
            told.append((provider.reach(SECONDS_TO_ANSWER), None))
        except EmbcacheError as error:
            told.append((None, str(error)))

    # On a thread of its own, which may be left: nothing else ends the wait for a resolver of names that hangs.
    thread = threading.Thread(target=ask, name="embcache-reach", daemon=True)
    thread.start()
    thread.join(SECONDS_TO_ANSWER + 1)
    return told[0] if told else (None, f"{provider.id} could not be reached within {SECONDS_TO_ANSWER:g} s")


def _failure_of(provider: Provider) -> str | None:
    """Return why the model in the process cannot be loaded, None where it can."""
    from embcache.errors import ConfigError
    from embcache.providers.local import LocalProvider

    try:
        if isinstance(provider, LocalProvider):
            provider.load()
    except ConfigError as error:
        return str(error)
    return None


def _lines(findings: Sequence[Finding]) -> list[str]:
    """Return findings as aligned lines, what to do under what was found."""
    width = max(len(one.check) for one in findings)
    lines: list[str] = []
    for one in findings:
        lines.append(f"{one.level:<7}  {one.check:<{width}}  {one.message}")
        if one.advice is not None:
            lines.append(f"{'':<7}  {'':<{width}}  -> {one.advice}")
    return lines


def _show_table(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column()
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for one in findings:
        # As Text: a name in brackets is no markup.
        told = Text(one.message) if one.advice is None else Text(f"{one.message}\n-> {one.advice}")
        table.add_row(Text(one.level, STYLES[one.level]), Text(one.check), told)
    Console().print(table)
