"""`python -m pi0rag_jax.study`: mistakes are said in one line."""

import json

import pytest

from pi0rag_jax.study import __main__ as command


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["flw2d"], "invalid choice: 'flw2d' (choose from"),
    ([], "required: STUDY"),
    (["flow2d", "--steps=1,x"], "--steps is '1,x'; allowed: numbers such as 1,2,5,10,100"),
    (["flow2d", "--draws=0"], "draws 0 and training_steps 2000; allowed: 1, 10 and 1, or more"),
    (["policy", "--steps=0,10"], "--steps is '0,10'; allowed: two numbers or more, each 1 or more"),
    (["policy", "--draws=0"], "draws are 0; allowed: 2 or more"),
    (["policy", "--moments=0"], "moments are 0; allowed: 1 or more"),
    (["policy", "--policy=pi0_fast_droid"], "policy 'pi0_fast_droid' is a pi0_fast, whose chunks come of no flow"),
    (["policy", "--policy=pi0_droid", "--checkpoint=gs://nowhere"], "no world is known: give --world, or --data"),
    (["policy", "--policy=panda_smal"], "Did you mean 'panda_small'?"),
    (["policy", "--task=pouring"], "policy 'panda_small' was trained on pick_and_place, not on 'pouring'"),
  ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
  assert command.main(arguments) == 2
  told = capsys.readouterr().err
  assert told.startswith("error: ") and message in told and told.count("\n") == 1


def test_a_policy_is_studied_in_its_world(tiny_policy_dir, tmp_path, capsys):
  assert command.main(["policy", f"--policy={tiny_policy_dir}", "--draws=3", "--moments=2", "--steps=1,4",
                       f"--out={tmp_path}"]) == 0
  assert capsys.readouterr().out.startswith("tiny: draws are ")
  written = json.loads((tmp_path / "summary.json").read_text("utf8"))
  assert written["settings"]["seen_in"] == "panda, pick_and_place, nominal, seed 300000"
  first, last = (row["moment"] for row in written["rows"] if row["measure"] == "moment")
  assert first == "tick 0" and int(last.removeprefix("tick ")) > 50  # at the end of its episode
  page = (tmp_path / "report.html").read_text("utf8")
  assert page.count("data:image/svg+xml") == 6 and "http" not in page.replace("http-equiv", "")
  assert {path.name for path in tmp_path.glob("*.png")} == {"draws.png", "steps.png", "errors.png"}
