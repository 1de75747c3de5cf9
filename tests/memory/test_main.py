import json
import subprocess
import sys

import pytest

from pi0rag_jax.memory import ANCHOR
from pi0rag_jax.memory.__main__ import main


@pytest.fixture
def directory(open_memory, make_record, tmp_path):
  memory = open_memory()
  memory.add([make_record(x, ANCHOR, task="pick") for x in (0.0, 0.1, 9.0)])
  memory.add([make_record(x, outcome="failure", failure_kind="slip") for x in (0.0, 0.1)])
  memory.close()
  return str(tmp_path / "memory")


def test_inspect(directory, capsys):
  assert main(["inspect", directory]) == 0
  out = capsys.readouterr().out
  assert "by_kind          anchor 3, correction 2\n" in out
  assert "by_failure_kind  (none) 3, slip 2\n" in out
  assert main(["inspect", directory, "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["records"] == 5
  assert found["header"]["encoder"] == "test"
  assert found["by_task"] == {"": 2, "pick": 3}


def test_inspect_an_empty_memory(open_memory, tmp_path, capsys):
  open_memory()
  assert main(["inspect", str(tmp_path / "memory")]) == 0
  assert "by_kind          -\n" in capsys.readouterr().out


def test_verify(directory, open_memory, capsys):
  assert main(["verify", directory]) == 0
  assert capsys.readouterr().out == f"{directory} is whole\n"
  memory = open_memory()
  memory._store._writer.execute("UPDATE records SET prompt = 'x' WHERE id > 3")
  memory.close()
  assert main(["verify", directory]) == 1
  assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
    "record 4 is damaged",
    "record 5 is damaged",
  ]


def test_export_and_import(directory, tmp_path, capsys):
  out, copy = str(tmp_path / "out.npz"), str(tmp_path / "copy")
  assert main(["export", directory, f"--out={out}"]) == 0
  assert main(["import", copy, f"--from={out}"]) == 0
  assert main(["import", copy, "--from", out]) == 0
  assert capsys.readouterr().out.splitlines() == [
    f"5 records written to {out}",
    f"5 records added to {copy}, 0 were there already",
    f"0 records added to {copy}, 5 were there already",
  ]
  assert main(["verify", copy]) == 0


def test_compact_evicts_only_what_is_asked_for(directory, open_memory, capsys):
  assert main(["compact", directory]) == 0
  assert "evicted" not in capsys.readouterr().out
  assert main(["compact", directory, "--near_duplicates=0.5"]) == 0
  assert "1 near-duplicate anchors evicted; " in capsys.readouterr().out
  assert main(["compact", directory, "--near_duplicates=0.5", "--kind=all"]) == 0
  assert "1 near-duplicate corrections evicted; 0 near-duplicate anchors evicted" in capsys.readouterr().out
  assert [i for i, _ in open_memory(read_only=True).records()] == [2, 3, 5]


def test_compact_shrinks_the_file(open_memory, make_record, tmp_path, capsys):
  memory = open_memory()
  ids = memory.add([make_record(float(x), prompt="p" * 4000) for x in range(90)])
  memory.remove(ids[1:])
  memory.close()
  assert main(["compact", str(tmp_path / "memory")]) == 0
  before, after = (int(word) for word in capsys.readouterr().out.split() if word.isdigit())
  assert after < before / 3


def test_users_mistakes_give_one_line_and_status_2(directory, open_memory, tmp_path, capsys):
  text = tmp_path / "text"
  text.write_text("hello")
  foreign = tmp_path / "foreign"
  foreign.mkdir()
  (foreign / "memory.sqlite3").write_text("hello")
  for arguments, message in (
    (["inspect", str(tmp_path / "missing")], "no memory in"),
    (["inspect", str(text)], "no memory in"),
    (["verify", str(tmp_path)], "no memory in"),
    (["verify", str(foreign)], "is not a memory"),
    (["compact", str(foreign)], "is not a memory"),
    (["compact", str(tmp_path / "missing")], "no memory in"),
    (["export", directory, f"--out={text}"], "is there already"),
    (["import", directory, f"--from={text}"], "is not an exported memory"),
    (["import", directory, f"--from={tmp_path / 'missing'}"], "is not an exported memory"),
  ):
    assert main(arguments) == 2, arguments
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ") and error.count("\n") == 1
  assert not (tmp_path / "missing").exists()
  open_memory()
  assert main(["compact", directory]) == 2
  assert "in use for writing by process" in capsys.readouterr().err


@pytest.mark.parametrize(
  "arguments",
  [
    [], ["forget", "d"], ["inspect"], ["export", "d"], ["import", "d"], ["compact", "d", "--near_duplicates=-1"],
    ["compact", "d", "--near_duplicates=nan"], ["compact", "d", "--near_duplicates=far"], ["compact", "d", "--kind=x"],
    ["import", "d", "--from=f", "--capacity=many"],
  ],
)  # fmt: skip
def test_wrong_arguments_end_with_status_2(arguments, capsys):
  with pytest.raises(SystemExit) as ended:
    main(arguments)
  assert ended.value.code == 2
  assert "usage: " in capsys.readouterr().err


def test_as_a_process(directory):
  command = [sys.executable, "-m", "pi0rag_jax.memory", "verify", directory]
  ended = subprocess.run(command, capture_output=True, text=True, check=False)
  assert (ended.returncode, ended.stderr) == (0, "")
  ended = subprocess.run([*command[:-1], directory + "x"], capture_output=True, text=True, check=False)
  assert ended.returncode == 2
  assert "Traceback" not in ended.stderr
