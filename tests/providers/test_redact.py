"""Redaction: a server's words are short, on one line, and give away neither the key nor what was asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embcache.providers.redact import CUT, redact

KEY = "sk-novita-QWERTZUIOPasdfgh"
TEXT = "The patient was admitted on Tuesday with a fever."


def runs(text: str, length: int) -> set[str]:
    """All pieces of so many characters, white space told as one blank."""
    line = " ".join(text.split())
    return {line[start : start + length] for start in range(len(line) - length + 1)}


@pytest.mark.parametrize(
    "words",
    [
        "no such model",
        "at most 32 inputs",
        "\u5927 is too long \U0001f600",
        "",
        "a: b, c; [d]",
        "sk-no and fever say nothing by themselves",
    ],
)
def test_harmless_words(words: str) -> None:
    """Words that quote nothing are shown as they are."""
    assert redact(words, KEY, [TEXT, "an input"]) == words
    assert redact(words, None, []) == words


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (f"bad key {KEY}", f"bad key {CUT}"),
        (f"bad key '{KEY}'!", f"bad key '{CUT}'!"),
        (f"Bearer {KEY} {KEY}", f"Bearer {CUT} {CUT}"),
        (f"bad key {KEY[:12]}********{KEY[-6:]}.", f"bad key {CUT}********{CUT}."),
        (f"bad key …{KEY[8:20]}…", f"bad key …{CUT}…"),
        (f"x{KEY}x", f"x{CUT}x"),
        (KEY, CUT),
    ],
)
def test_keys(words: str, shown: str) -> None:
    """The API key is cut out wherever it stands, also where only some of it is quoted."""
    assert redact(words, KEY, []) == shown


@pytest.mark.parametrize("key", ["k", "abc", "secret", KEY])
def test_short_keys(key: str) -> None:
    """A key of a test server, however short, is cut out as a whole."""
    assert redact(f"key={key}.", key, []) == f"{CUT}ey={CUT}." if key == "k" else f"key={CUT}."


def test_no_key() -> None:
    """Where there is no key there is none to cut out."""
    assert redact("bad key", None, []) == redact("bad key", "", []) == "bad key"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (f"cannot embed {TEXT}", f"cannot embed {CUT}"),
        (f"cannot embed '{TEXT}'", f"cannot embed '{CUT}'"),
        (f"cannot embed '{TEXT[:20]}...'", f"cannot embed '{CUT}...'"),
        (f"token {TEXT[17:29]!r} at 17", f"token '{CUT}' at 17"),
        (f"{TEXT} / {TEXT}", f"{CUT} / {CUT}"),
        (TEXT.replace(" ", "\n\t"), CUT),
    ],
)
def test_texts(words: str, shown: str) -> None:
    """Of a text any eight characters in a row are cut out, whatever became of its white space."""
    assert redact(words, KEY, ["another input", TEXT]) == shown
    assert redact(words, KEY, [TEXT.replace(" ", "  \n")]) == shown


@pytest.mark.parametrize(
    ("text", "words", "shown"),
    [
        ("fever", "cannot embed 'fever'", f"cannot embed '{CUT}'"),
        ("fever", "fevers and feverish", "fevers and feverish"),
        ("no", "no: nothing to note, no", f"{CUT}: nothing to note, {CUT}"),
        ("a.b", "is a.b but not axb", f"is {CUT} but not axb"),
        (" yes ", "yes", CUT),
        ("(", "f (x) ( x", f"f (x) {CUT} x"),
        ("\u5927", "input \u5927!", f"input {CUT}!"),
        ("1234567", "got 1234567, not 12345678", f"got {CUT}, not 12345678"),
        ("12345678", "got 123456789", f"got {CUT}9"),
        (" ", "a b c", "a b c"),
        ("", "a b c", "a b c"),
    ],
)
def test_short_texts(text: str, words: str, shown: str) -> None:
    """A text too short to be told from anything else is cut out where it stands as a word of its own."""
    assert redact(words, KEY, [text]) == shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "\u0633\u0644\u0627\u0645 \u0639\u0644\u06cc\u06a9\u0645",
            "\u0633\u0644\u0627\u0645 \u0639\u0644\u06cc\u06a9\u0645",
        ),
        (
            "\u6771\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd\u3067\u3059",
            "\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd\u3067",
        ),
        ("\U0001f600" * 10, "\U0001f600" * 9),
        ("cafe\u0301 au lait", "cafe\u0301 au lait"),
    ],
)
def test_texts_in_any_script(text: str, words: str) -> None:
    """Characters are counted, not bytes, in every script."""
    assert redact(f"cannot embed {words}.", KEY, [text]) == f"cannot embed {CUT}."


def test_token_ids_are_no_text() -> None:
    """Numbers that happen to be token ids are shown."""
    assert redact("got 101 tokens", KEY, [[101, 102]]) == "got 101 tokens"


@pytest.mark.parametrize("length", [0, 199, 200, 201, 5000, 1_000_000])
def test_length(length: int) -> None:
    """No more than 200 characters are shown, however many were said."""
    assert redact("x" * length, KEY, [TEXT]) == "x" * min(length, 200)


def test_one_line() -> None:
    """What is shown is one line without blanks at its ends, so that nobody can forge a line of a log."""
    assert redact(" two\r\nlines\tand\u2028more \n", KEY, []) == "two lines and more"


def test_words_that_can_be_printed() -> None:
    """A lone surrogate, which JSON can say and no terminal can show, is shown as a question mark."""
    assert redact("bad \ud800 input", KEY, []) == "bad ? input"


@given(
    st.lists(
        st.sampled_from([KEY, KEY[:9], KEY[5:], TEXT, TEXT[3:14], "fever", " ", "\n", "x", "bad "])
        | st.text(max_size=9)
    ),
    st.lists(st.sampled_from([TEXT, TEXT[10:], "fever", ""]) | st.text(max_size=12)),
)
def test_nothing_is_given_away(said: list[str], inputs: list[str]) -> None:
    """Whatever is said of whatever inputs: six characters of the key or eight of a text are never shown in a row."""
    words = "".join(said)
    shown = redact(words, KEY, inputs)
    assert len(shown) <= 200
    assert "\n" not in shown
    pieces = shown.split(CUT)
    assert not any(runs(piece, 6) & runs(KEY, 6) for piece in pieces)
    for text in inputs:
        assert not any(runs(piece, 8) & runs(text, 8) for piece in pieces)
    assert all(piece.strip() in " ".join(words.split()) for piece in pieces[:-1])
