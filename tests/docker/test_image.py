"""The image: what its files name is there, and its command, killed and started again, has its memory still."""

import contextlib
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import yaml

from pi0rag_jax.policy import directory
from pi0rag_jax.serving.client import TeachingClient
from pi0rag_jax.serving.server import TOKEN_VARIABLE

ROOT = pathlib.Path(__file__).parents[2]
VOLUME, PORT, TOKEN = "/data", "8000", "sesame"
SERVING = "Serving at ws://127.0.0.1:"


@pytest.fixture(scope="module")
def steps():
  """The Dockerfile's (instruction, rest) in their order."""
  text = re.sub(r"^\s*#.*\n", "", (ROOT / "docker/Dockerfile").read_text("utf8"), flags=re.MULTILINE)
  return [tuple(line.split(None, 1)) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture(scope="module")
def compose():
  return yaml.safe_load((ROOT / "docker/compose.yaml").read_text("utf8"))


def last(steps, instruction: str) -> str:
  return next(rest for name, rest in reversed(steps) if name == instruction)


def arguments(steps) -> dict[str, str]:
  return dict(rest.split("=", 1) for name, rest in steps if name == "ARG")


def services(compose) -> dict[str, dict]:
  """Each service with what it extends."""
  return {name: {**(compose["services"][service["extends"]["service"]] if "extends" in service else {}), **service}
          for name, service in compose["services"].items()}


def test_what_is_copied_is_there_and_not_ignored(steps):
  ignored = (ROOT / "docker/Dockerfile.dockerignore").read_text("utf8").splitlines()
  copied = [source for name, rest in steps if name == "COPY" for source in shlex.split(rest)[:-1]]
  assert "pi0rag_jax" in copied and ignored[1] == "*"
  for source in copied:
    assert (ROOT / source).exists() and f"!{source}" in ignored, source


def test_packages_of_ours_are_all_copied(steps):
  project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))
  copied = " ".join(rest for name, rest in steps if name == "COPY")
  for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]:
    assert pattern.removesuffix("*") in copied.split()
  for file in [project["project"]["readme"], *project["project"]["license-files"]]:
    assert file in copied.split()


def test_extras_and_arguments_exist(steps, compose):
  extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]["optional-dependencies"]
  known = arguments(steps)
  used = [known["EXTRAS"]]
  for service in services(compose).values():
    build = service["build"]
    assert (ROOT / "docker" / build["context"] / build["dockerfile"]).samefile(ROOT / "docker/Dockerfile")
    assert set(build.get("args", {})) <= set(known)
    used.append(build.get("args", {}).get("EXTRAS", known["EXTRAS"]))
  assert len(used) == 4
  for extra in ",".join(used).split(","):
    assert extra in extras


def test_services_are_bounded_watched_and_restarted(steps, compose):
  assert last(steps, "VOLUME") == VOLUME and last(steps, "EXPOSE") == PORT
  assert f":{PORT}/healthz" in last(steps, "HEALTHCHECK") and last(steps, "USER") == "10001"
  assert set(services(compose)) == {"server", "cuda", "jetson"}
  for name, service in services(compose).items():
    assert service["mem_limit"] == service["memswap_limit"] == "14g" and service["restart"] == "unless-stopped"
    assert service["volumes"] == [f"data:{VOLUME}"] and "data" in compose["volumes"]
    assert [port.rsplit(":", 2)[1:] for port in service["ports"]] == [[PORT, PORT]]
    assert service["environment"][TOKEN_VARIABLE].startswith(f"${{{TOKEN_VARIABLE}:?")
    assert service.get("profiles", []) == ([] if name == "server" else [name])
  # Without the default of a variable, it is the image's own command.
  assert [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", word) for word in compose["services"]["server"]["command"]] == json.loads(
    last(steps, "CMD"))


@contextlib.contextmanager
def started(command, log):
  """Yields the process of the image's command, and the port that it serves at."""
  environment = {**os.environ, TOKEN_VARIABLE: TOKEN}
  with open(log, "a") as file, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, cwd=ROOT,
                                                env=environment) as process:
    try:
      line = next((line for line in process.stdout if line.startswith(SERVING)), None)
      assert line is not None, log.read_text()
      yield process, line.removeprefix(SERVING).split()[0]
    finally:
      process.kill()


@pytest.mark.slow
def test_the_memory_survives_a_kill(steps, tmp_path):
  command = [word.replace(VOLUME, str(tmp_path)) for word in json.loads(last(steps, "ENTRYPOINT"))[1:]
             + json.loads(last(steps, "CMD"))]
  command = [sys.executable, *command, "--host=127.0.0.1", "--port=0"]
  healthy = json.loads(last(steps, "HEALTHCHECK").split(" CMD ")[1])
  observation = directory.load("panda_small").robot.example()
  with started(command, tmp_path / "log") as (server, port):
    subprocess.run([sys.executable, *(word.replace(PORT, port) for word in healthy[1:])], check=True)
    robot = TeachingClient("127.0.0.1", int(port), api_key=TOKEN)
    robot.begin("first", task="pick_and_place")
    own_TA = robot.infer(observation)["actions"]
    robot.did(own_TA[:4] + np.float32(0.002), by="human")
    learned = robot.end(success=True)["records"]
    assert learned
    server.send_signal(signal.SIGKILL)
  with started(command, tmp_path / "log") as (server, port):
    again = TeachingClient("127.0.0.1", int(port), api_key=TOKEN)
    assert again.infer(observation)["neighbours_used"]
    assert again.undo("first")["forgotten"] == learned
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0
