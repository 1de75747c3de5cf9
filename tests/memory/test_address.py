"""Where a memory is, and that nobody is shown its passwords."""

import argparse
import pathlib
import sys

import pytest

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import Memory, address

SECRET = "postgresql://robot:s3cr%40t@host:5432/fleet?memory=kitchen&sslmode=require&sslpassword=other"


def test_an_address_is_shown_without_passwords():
  found = address.locate(SECRET)
  texts = [str(found), repr(found), f"{found}", address.shown(SECRET), str(address.read(SECRET)), f"{[found]}"]
  assert set(texts) == {texts[0], f"[{texts[0]}]"}
  assert texts[0] == "postgresql://robot@host:5432/fleet?memory=kitchen&sslmode=require"
  assert found.secrets() == ["s3cr%40t", "s3cr@t", "other"]
  assert address.locate(found.whole()) == found
  # What is ours is not libpq's.
  assert found.uri == "postgresql://robot:s3cr%40t@host:5432/fleet?sslmode=require&sslpassword=other"


def test_folders_stay_what_they_are_given_as(tmp_path):
  assert address.locate("~/memory") == pathlib.Path("~/memory").expanduser()
  assert address.read("memory") == "memory" and address.shown(tmp_path) == str(tmp_path)
  assert address.beside(tmp_path) == tmp_path
  assert (address.name_of(tmp_path / "m"), address.name_of(SECRET)) == ("m", "kitchen")


def test_what_is_kept_beside_a_memory_on_a_server_is_on_this_machine(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
  assert address.beside(SECRET) == tmp_path / "pi0rag" / "host-5432_fleet_kitchen"


@pytest.mark.parametrize(("text", "message"), [
  ("postgresql://u:s3cret@host/db", "names no memory.*at most 63"),
  ("postgresql://u:s3cret@host/db?memory=", "names no memory"),
  ("postgresql://u:s3cret@host/db?memory=a/b", "'a/b' is no name of a memory"),
  ("postgresql://u:s3cret@host/db?memory=a&version=-1", "version is '-1', must be a whole number"),
  ("postgresql://u:s3cret@host/db?memory", "cannot be read: write it like postgresql://"),
  (pathlib.Path("postgresql://u:s3cret@host/db?memory=a"), "was taken for a path"),
])
def test_addresses_that_name_no_memory(text, message):
  with pytest.raises(Pi0RagError, match=message) as told:
    address.locate(text)
  assert "s3cret" not in str(told.value)


def test_what_a_server_needs_is_named(monkeypatch):
  for name in [name for name in sys.modules if name.startswith("pi0rag_jax.memory.postgres")]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, "psycopg", None)
  with pytest.raises(Pi0RagError, match=r"needs psycopg and alembic: pip install 'pi0rag-jax\[postgres\]'"):
    Memory.load(SECRET)


def test_versions_and_credentials_come_with_flags(tmp_path):
  passwords = tmp_path / "passwords"
  passwords.write_text("host:5432:fleet:robot:s3cret\n")
  passwords.chmod(0o600)
  parser = argparse.ArgumentParser()
  parser.add_argument("--memory")
  address.add_flags(parser)
  asked = ["--memory=postgresql://robot@host/fleet?memory=a", f"--memory_credentials={passwords}", "--memory_version=7"]
  found = address.given(parser.parse_args(asked))
  assert (found.memory, found.version) == ("a", 7)
  assert found.uri == f"postgresql://robot@host/fleet?passfile={passwords}"
  assert address.given(parser.parse_args([])) is None
  assert address.given(parser.parse_args(["--memory=folder"])) == "folder"
  for wrong, message in (
    (asked[1:], "are of a --memory: give that too"),
    (["--memory=folder", asked[2]], "folder is a folder, which has no versions"),
    (["--memory=folder", asked[1]], "credentials are for a memory on a server"),
    ([asked[0], f"--memory_credentials={passwords}x"], "cannot be read: No such file"),
  ):
    with pytest.raises(Pi0RagError, match=message):
      address.given(parser.parse_args(wrong))
  passwords.chmod(0o644)
  with pytest.raises(Pi0RagError, match="may be read by others: chmod 600"):
    address.given(parser.parse_args(asked))
  with pytest.raises(Pi0RagError, match="has no versions"):
    Memory.load(tmp_path, version=1)
