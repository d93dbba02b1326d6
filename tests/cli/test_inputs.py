"""The files of `embcache embed`: every fault is found, and named by its line and never by its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from embcache.cli.common import Code, Fault
from embcache.cli.inputs import count, sources_of

if TYPE_CHECKING:
    from pathlib import Path

FAULTY = {
    "not JSON": ("in.jsonl", b'{"text": "CANARY"}\n{"text": "CANARY\n', "line 2: not JSON"),
    "too deep": ("in.jsonl", b"[" * 100_000, "line 1: not JSON"),
    "a list": ("in.jsonl", b'\n["CANARY"]\n', "line 2: not a JSON object"),
    "no field": ("in.jsonl", b'{"CANARY": "x"}\n', "line 1: has no field 'text'"),
    "a number": ("in.jsonl", b'{"text": 7}\n', "line 1: the field 'text' holds a number, not a text"),
    "null": ("in.jsonl", b'{"text": null}\n', "line 1: the field 'text' holds null, not a text"),
    "an object": ("in.jsonl", b'{"text": {"CANARY": 1}}\n', "line 1: the field 'text' holds an object, not a text"),
    "empty": ("in.jsonl", b'{"text": "CANARY"}\n{"text": ""}\n', "line 2: the text is empty"),
    "surrogate": ("in.jsonl", b'{"text": "CANARY \\ud800"}\n', "line 1: the text holds half of a surrogate pair"),
    "encoding of .jsonl": ("in.jsonl", b'{"text": "CANARY \xe9"}\n', "line 1: not UTF-8"),
    "encoding of .txt": ("in.txt", b"CANARY\nCANARY \xe9\n", "line 2: not UTF-8"),
    "encoding of .csv": ("in.csv", b"text\nCANARY\nCANARY \xe9\n", "line 3: not UTF-8"),
    "short row": ("in.csv", b"id,text\n1,CANARY\n2\n", "line 3: has no cell in the column 'text'"),
    "empty cell": ("in.csv", b'id,text\n1,"CANARY\nCANARY"\n2,\n', "line 4: the text is empty"),
    "open quote": ("in.csv", b'text\n"CANARY\nCANARY', "line 3: not CSV: unexpected end of data"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_faulty_line(tmp_path: Path, fault: str) -> None:
    """A line that holds no text that can be embedded is a fault of exit code 1, found before anything is sent."""
    name, content, message = FAULTY[fault]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Fault) as caught:
        count(sources_of([str(tmp_path / name)], "text"))
    assert str(caught.value).startswith(f"{tmp_path / name} {message}")
    assert "CANARY" not in str(caught.value)
    assert caught.value.code == Code.FAILED
