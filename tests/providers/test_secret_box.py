"""Provider keys at rest open for their row and nothing else."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vanilla_saas.providers.secrets import (
    SecretBox,
    SecretKeyMissing,
    SecretUnreadable,
    create_key_file,
)
from vanilla_saas.settings import Settings

OLD, NEW = bytes(range(32)), bytes(range(1, 33))
TENANT, ROW = UUID(int=1), UUID(int=2)


def settings(home: Path, key: str | None = None) -> Settings:
    return Settings(home=home, secret_key=key, _env_file=None)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_went_in_comes_out(plaintext):
    box = SecretBox([NEW])
    assert box.decrypt(TENANT, ROW, box.encrypt(TENANT, ROW, plaintext)) == plaintext


def test_the_same_secret_never_has_the_same_bytes_and_shows_in_none():
    box = SecretBox([NEW])
    stored = {box.encrypt(TENANT, ROW, "sk-visible") for _ in range(100)}
    assert len(stored) == 100
    assert not [s for s in stored if b"visible" in s]


def test_each_flipped_byte_is_refused():
    box = SecretBox([NEW, OLD])
    stored = box.encrypt(TENANT, ROW, "sk-secret")
    for position in range(len(stored)):
        for bit in (1, 128):
            flipped = bytearray(stored)
            flipped[position] ^= bit
            with pytest.raises(SecretUnreadable):
                box.decrypt(TENANT, ROW, bytes(flipped))


def test_each_shorter_or_longer_form_is_refused():
    box = SecretBox([NEW])
    stored = box.encrypt(TENANT, ROW, "sk-secret")
    for changed in [*(stored[:n] for n in range(len(stored))), stored + b"\0"]:
        with pytest.raises(SecretUnreadable):
            box.decrypt(TENANT, ROW, changed)


def test_bytes_of_another_tenant_row_or_column_are_refused():
    box = SecretBox([NEW])
    stored = box.encrypt(TENANT, ROW, "sk-secret")
    for tenant, row in ((uuid4(), ROW), (TENANT, uuid4()), (ROW, TENANT)):
        with pytest.raises(SecretUnreadable):
            box.decrypt(tenant, row, stored)
    with pytest.raises(SecretUnreadable):
        SecretBox([NEW], column="other").decrypt(TENANT, ROW, stored)


def test_rotation_reads_the_old_and_writes_the_new():
    stored = SecretBox([OLD]).encrypt(TENANT, ROW, "sk-secret")
    both = SecretBox([NEW, OLD])
    assert not both.is_current(stored)
    rewritten = both.encrypt(TENANT, ROW, both.decrypt(TENANT, ROW, stored))
    assert both.is_current(rewritten)
    only_new = SecretBox([NEW])
    assert only_new.decrypt(TENANT, ROW, rewritten) == "sk-secret"
    with pytest.raises(SecretUnreadable, match="not known"):
        only_new.decrypt(TENANT, ROW, stored)


def test_the_environments_key_comes_first_and_leaves_no_file(tmp_path):
    box = SecretBox.from_settings(settings(tmp_path, f"{NEW.hex()}, {OLD.hex()}"))
    assert box.decrypt(TENANT, ROW, SecretBox([OLD]).encrypt(TENANT, ROW, "x")) == "x"
    assert box.is_current(SecretBox([NEW]).encrypt(TENANT, ROW, "x"))
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_made_once_for_its_owner_only(tmp_path):
    home = tmp_path / "a" / "home"
    box = SecretBox.from_settings(settings(home))
    stored = box.encrypt(TENANT, ROW, "sk-secret")
    path = home / "secret.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in home.iterdir()] == ["secret.key"]
    assert SecretBox.from_settings(settings(home)).decrypt(TENANT, ROW, stored) == "sk-secret"


def test_processes_that_start_at_once_agree_on_one_key(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        boxes = list(pool.map(lambda _: SecretBox.from_settings(settings(tmp_path)), range(64)))
    assert len({repr(box) for box in boxes}) == 1
    assert os.listdir(tmp_path) == ["secret.key"]


@pytest.mark.parametrize("text", ["", "zz", "00" * 31, "00" * 33, NEW.hex() + " 00", "é" * 64])
def test_a_key_that_is_none_is_missing(tmp_path, text):
    (tmp_path / "secret.key").write_text(text)
    for given_settings in (settings(tmp_path), settings(tmp_path, text)):
        with pytest.raises(SecretKeyMissing) as caught:
            SecretBox.from_settings(given_settings)
        assert caught.value.code == "secret_key_missing"


def test_a_missing_file_is_not_made_when_it_should_be_there(tmp_path):
    with pytest.raises(SecretKeyMissing, match="cannot be read"):
        SecretBox.from_settings(settings(tmp_path), create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SecretKeyMissing, match="cannot be created"):
        create_key_file(tmp_path / "file" / "secret.key")


def test_errors_and_repr_show_no_secret():
    box = SecretBox([NEW])
    stored = box.encrypt(TENANT, ROW, "sk-secret")
    texts = [repr(box), str(vars(box))]
    for data in (stored[:-1], b"", stored[:1] + b"abcd" + stored[5:]):
        with pytest.raises(SecretUnreadable) as caught:
            box.decrypt(TENANT, ROW, data)
        texts += [str(caught.value), repr(caught.value.__context__)]
        assert caught.value.code == "secret_unreadable"
    assert not [t for t in texts if NEW.hex() in t or "sk-secret" in t or repr(NEW) in t]
