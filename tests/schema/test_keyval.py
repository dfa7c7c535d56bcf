# SPDX-License-Identifier: Apache-2.0
"""The keyval syntax."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.schema.qemu import message, needs_qemu
from vhostblk.schema import keyval
from vhostblk.schema.errors import HelpRequestedError, OptionError

ACCEPTED = [
    ("", {}),
    ("a=1", {"a": "1"}),
    ("a=1,", {"a": "1"}),
    ("a=", {"a": ""}),
    ("a=b=c", {"a": "b=c"}),
    ("a=1,a=2", {"a": "2"}),
    ("a=x,,y", {"a": "x,y"}),
    ("a=,,", {"a": ","}),
    ("a=,,,b=1", {"a": ",", "b": "1"}),
    ("a=1,b=2,", {"a": "1", "b": "2"}),
    ("a.b=1,a.c.d=2", {"a": {"b": "1", "c": {"d": "2"}}}),
    ("a.0=x,a.1=y", {"a": ["x", "y"]}),
    ("a.1=y,a.0=x", {"a": ["x", "y"]}),
    ("a.00=x", {"a": ["x"]}),
    ("a.0.b=1,a.1.b=2", {"a": [{"b": "1"}, {"b": "2"}]}),
    ("a.0.0=x", {"a": [["x"]]}),
    ("file", {"driver": "file"}),
    ("file,a=1", {"driver": "file", "a": "1"}),
    ("file,driver=raw", {"driver": "raw"}),
    ("__com.example_a=1", {"__com.example_a": "1"}),
    ("__com.example_a.b=1", {"__com.example_a": {"b": "1"}}),
    ("a-b_c9=1", {"a-b_c9": "1"}),
    ("a=help", {"a": "help"}),
    ("help=1", {"help": "1"}),
    ("a=\u00e4\udcff", {"a": "\u00e4\udcff"}),
]

REFUSED = [
    (",a=1", "Invalid parameter ''"),
    ("a=1,,b=2,=3", "Invalid parameter ''"),
    ("driver=x,a", "Expected '=' after parameter 'a'"),
    ("x,a", "Expected '=' after parameter 'a'"),
    ("=x", "Invalid parameter ''"),
    (".a=1", "Invalid parameter '.a'"),
    ("a.=1", "Invalid parameter 'a.'"),
    ("a..b=1", "Invalid parameter 'a..b'"),
    ("1a=2", "Invalid parameter '1a'"),
    ("0=2", "Invalid parameter '0'"),
    ("a.1b=2", "Invalid parameter 'a.1b'"),
    ("a.-1=2", "Invalid parameter 'a.-1'"),
    ("_a=1", "Invalid parameter '_a'"),
    ("a b=1", "Invalid parameter 'a b'"),
    ("a.0=1,a.b=2", "Parameters 'a.*' used inconsistently"),
    ("a.b.0=1,a.b.c=2", "Parameters 'a.b.*' used inconsistently"),
    ("a=1,a.b=2", "Parameters 'a.*' used inconsistently"),
    ("a.b=2,a=1", "Parameters 'a.*' used inconsistently"),
    ("a.b=1,a.b.c.d=2", "Parameters 'a.b.*' used inconsistently"),
    ("a.1=x", "Parameter 'a.0' missing"),
    ("a.0=x,a.2=x", "Parameter 'a.1' missing"),
    ("a.00=x,a.0=y,a.1=z,a.3=z", "Parameter 'a.2' missing"),
    ("a.99999999999999999999=x", "Parameter 'a.0' missing"),
    ("x" * 128 + "=1", f"Parameter '{'x' * 128}' is too long"),
    ("a." + "x" * 128 + "=1", f"Parameter fragment '{'x' * 128}' is too long"),
]


@pytest.mark.parametrize(("text", "tree"), ACCEPTED)
def test_accepted(text: str, tree: dict[str, object]) -> None:
    assert keyval.parse(text, "driver") == tree


@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(OptionError) as caught:
        keyval.parse(text, "driver")
    assert str(caught.value) == reason


@needs_qemu
@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_qemu_refuses_likewise(text: str, reason: str) -> None:
    assert message("blockdev", text) == reason


@needs_qemu
@pytest.mark.parametrize("text", [text for text, _ in ACCEPTED if "\udcff" not in text])
def test_qemu_parses_likewise(text: str) -> None:
    """What gets past the parser fails for what it means: no such driver, no such member."""
    said = message("blockdev", text)
    assert said is not None
    assert said.startswith(("Parameter 'driver' ", "Parameter 'file' is missing")) or (
        said == "Parameter 'filename' is missing"
    )


def test_a_value_alone_needs_an_implied_key() -> None:
    with pytest.raises(OptionError, match="Expected '=' after parameter 'file'"):
        keyval.parse("file")


def test_only_the_first_value_may_stand_alone() -> None:
    with pytest.raises(OptionError, match="Expected '=' after parameter 'file'"):
        keyval.parse("a=1,file", "driver")


@pytest.mark.parametrize("text", ["help", "?", "help,", "file,help", "file,?,a=1", "a=1,help"])
def test_help(text: str) -> None:
    with pytest.raises(HelpRequestedError) as caught:
        keyval.parse(text, "driver")
    assert caught.value.options == {
        key: value for key, value in (("driver", "file"), ("a", "1")) if value in text
    }


names = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True).filter(lambda n: n != "help")
trees = st.recursive(
    st.text(st.characters(codec="utf-8"), max_size=8),
    lambda below: (
        st.dictionaries(names, below, min_size=1, max_size=3)
        | st.lists(below, min_size=1, max_size=3)
    ),
    max_leaves=10,
)


def _pairs(value: object, path: str) -> list[str]:
    if isinstance(value, dict):
        return [pair for key, child in value.items() for pair in _pairs(child, f"{path}.{key}")]
    if isinstance(value, list):
        return [pair for key, child in enumerate(value) for pair in _pairs(child, f"{path}.{key}")]
    return [f"{path}={str(value).replace(',', ',,')}"]


@given(tree=st.dictionaries(names, trees, max_size=4), randomly=st.randoms())
def test_what_is_written_is_read_back(tree: dict[str, object], randomly: object) -> None:
    pairs = [pair for key, child in tree.items() for pair in _pairs(child, key)]
    getattr(randomly, "shuffle")(pairs)  # noqa: B009 (its type is hypothesis' own)
    assert keyval.parse(",".join(pairs)) == tree


@given(st.text(st.sampled_from("ab0.,=_-?help"), max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        keyval.parse(text, "driver")
    except (OptionError, HelpRequestedError):
        pass
