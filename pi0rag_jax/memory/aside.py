"""A survey of a memory in a process of its own, so that who serves a policy does not share its time with browsers.

`python -m pi0rag_jax.memory.aside` answers lines of JSON, one for each, until its input ends, as it does with the
process that started it. The first line is the memory's address: of an argument everybody would see the passwords.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory import address
from pi0rag_jax.memory.survey import Survey

_END_S = 5.0
NICENESS = 10  # whoever decides goes first


class SurveyAside:
  """Asks a survey in another process, which is started when it is first needed. For one thread."""

  def __init__(self, place):
    if address.stored_header(place) is None:  # what is no memory is told now
      raise Pi0RagError(f"no memory in {address.shown(place)}")
    found = address.locate(place)
    self._place = str(found) if isinstance(found, Path) else found.whole()
    self._process: subprocess.Popen[str] | None = None

  def ask(self, name: str, **asked: Any) -> dict[str, Any]:
    """Returns what a method of `Survey` does. Errors: its own; RuntimeError where the process came to harm."""
    process = self._running()
    assert process.stdin is not None and process.stdout is not None, "as they were asked for"
    try:
      process.stdin.write(json.dumps([name, asked]) + "\n")
      process.stdin.flush()
      line = process.stdout.readline()
    except OSError:
      line = ""
    if not line:
      self.close()
      raise RuntimeError("the survey's process has ended")
    kind, answer = json.loads(line)
    if kind == "error":
      raise Pi0RagError(answer)
    if kind == "bug":
      raise RuntimeError(answer)
    return answer

  def close(self) -> None:
    """Ends the process."""
    process, self._process = self._process, None
    if process is None:
      return
    assert process.stdin is not None and process.stdout is not None, "as they were asked for"
    with contextlib.suppress(OSError):
      process.stdin.close()
    if address.on_server(self._place):
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_END_S)  # it removes its mirror
    process.kill()
    process.wait()
    process.stdout.close()

  def _running(self) -> "subprocess.Popen[str]":
    if self._process is None:
      # A session of its own: Ctrl-C is for the server.
      command = [sys.executable, "-m", "pi0rag_jax.memory.aside"]
      self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                       start_new_session=True)
      assert self._process.stdin is not None, "as it was asked for"
      self._process.stdin.write(json.dumps(self._place) + "\n")
      self._process.stdin.flush()
    return self._process


def answer_all(survey: Survey, questions: IO[str], answers: IO[str]) -> None:
  """Answers lines until there are no more."""
  for line in questions:
    name, asked = json.loads(line)
    try:
      said = "answer", survey.ask(name, **asked)
    except Pi0RagError as error:
      said = "error", str(error)
    except Exception as error:  # told to who asked, who goes on
      said = "bug", f"{type(error).__name__}: {error}"
    print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
  os.nice(NICENESS)
  logging.getLogger("pi0rag_jax").setLevel(logging.ERROR)  # the process that asks says itself that a server is away
  try:
    with contextlib.closing(Survey(json.loads(sys.stdin.readline()))) as opened:
      answer_all(opened, sys.stdin, sys.stdout)
  except Pi0RagError as away:  # a server, for now; the next question starts another process
    print(json.dumps(("error", str(away))), flush=True)
