"""A server that is killed while robots teach it loses nothing that it acknowledged; a loss would be seen."""

import subprocess
import sys

from eval import teaching_durability
from pi0rag_jax.memory.memory import Memory
from pi0rag_jax.serving.episode_log import LOG_NAME, EpisodeLog
from pi0rag_jax.serving.session import Teachable


def test_nothing_that_was_acknowledged_is_lost():
  """In a process of its own: it forks, which a process with threads should not."""
  done = subprocess.run([sys.executable, "-m", "eval.teaching_durability", "--kills=6"], capture_output=True, text=True,
                        timeout=200)
  assert done.returncode == 0 and '"problems": []' in done.stdout and '"kills": 6' in done.stdout, done.stderr


def test_a_loss_and_what_nobody_taught_are_seen(tmp_path):
  with Memory.open(tmp_path, **teaching_durability.HEADER) as memory:
    log = EpisodeLog(tmp_path / LOG_NAME)
    robot = teaching_durability._InProcess(Teachable(teaching_durability.ScriptedAgent(), memory, log).session())
    learned = {name: teaching_durability.live(robot, name, number) for number, name in
               enumerate(("episode 0", "episode 1", "episode 2"))}
    log.close()
    assert all(len(ids) == teaching_durability.DECISIONS for ids in learned.values())
  assert teaching_durability._differences(tmp_path, learned) == []
  with Memory.open(tmp_path, **teaching_durability.HEADER) as memory:
    memory.remove(learned["episode 1"][:1])
  del learned["episode 2"]
  assert teaching_durability._differences(tmp_path, learned) == [
    "'episode 2' was never told to be learned", "'episode 1' is not as it was taught"]
