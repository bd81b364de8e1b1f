import hashlib
from pathlib import Path

import pytest

from recsys.privacy.pseudonymise import Pseudonymiser, read_key

KEY = b"0123456789abcdef"


def test_a_pseudonym_is_the_keyed_blake2b_of_the_id() -> None:
    expected = hashlib.blake2b(b"ann", key=KEY, digest_size=16).hexdigest()
    assert Pseudonymiser(KEY)(["ann"]) == [expected]


def test_another_key_gives_other_pseudonyms() -> None:
    assert Pseudonymiser(KEY)(["ann"]) != Pseudonymiser(KEY[::-1])(["ann"])


def test_different_ids_get_different_pseudonyms_in_order() -> None:
    hide = Pseudonymiser(KEY)
    names = [str(i) for i in range(100)]
    assert len(set(hide(names))) == 100
    assert hide(names[::-1]) == hide(names)[::-1]


def test_the_key_is_not_shown() -> None:
    assert "0123" not in repr(Pseudonymiser(KEY))


@pytest.mark.parametrize("size", [0, 15, 65])
def test_a_key_of_the_wrong_length_is_refused_without_showing_it(size: int) -> None:
    with pytest.raises(ValueError, match=f"16 to 64 bytes, not {size}"):
        Pseudonymiser(b"k" * size)


def test_a_pseudonym_too_short_to_differ_is_refused() -> None:
    with pytest.raises(ValueError, match=r"digest_bytes \(2\)"):
        Pseudonymiser(KEY, digest_bytes=2)


def test_a_key_file_ends_before_its_line_break(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(KEY + b"\n")
    assert read_key(file=file) == KEY


def test_a_key_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER_KEY", KEY.decode())
    assert read_key(variable="USER_KEY") == KEY


def test_a_missing_key_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USER_KEY", raising=False)
    with pytest.raises(ValueError, match="USER_KEY"):
        read_key(variable="USER_KEY")
    with pytest.raises(ValueError, match="absent"):
        read_key(file=tmp_path / "absent")
    with pytest.raises(ValueError, match="exactly one"):
        read_key()
