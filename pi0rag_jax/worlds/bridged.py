"""The other end of `bridge`: a world, and the calls to it, in the interpreter that was asked for."""

import socket
import sys
import traceback

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.worlds import bridge, registry
from pi0rag_jax.worlds.world import WorldConfig


def serve(connection: socket.socket) -> None:
  """Makes a world and answers calls to it until the other end is gone."""
  world = None
  while True:
    try:
      call = bridge.receive(connection)
    except (EOFError, OSError):
      break
    method, args = call["method"], call["args"]
    try:
      value = None
      if method == "require":
        registry.require(WorldConfig(**args[0]))
      elif method == "make":
        world = registry.make_world(WorldConfig(**args[0]))
      else:
        value = getattr(world, method)(*args, **call["kwargs"])
      bridge.send(connection, {"error": "", "value": value})
    except Pi0RagError as error:
      bridge.send(connection, {"error": str(error), "value": None})
    except Exception:
      why = f"the world's process failed at '{method}':\n{traceback.format_exc()}"
      bridge.send(connection, {"error": why, "value": None})
  if world is not None:
    world.close()


if __name__ == "__main__":
  serve(socket.socket(fileno=int(sys.argv[1])))
