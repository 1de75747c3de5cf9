"""What of Ray crews need, in this process: nodes with CPUs, and actors whose answers are worked out when waited for."""

import types


class RayError(Exception):
  """Of the made-up Ray: an actor is gone."""


class RayTaskError(RayError):
  """Of the made-up Ray: what an actor does has raised."""


class MadeUpRay(types.ModuleType):
  """Nodes with CPUs and actors in this process; answers are worked out when they are waited for."""

  exceptions = types.SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

  def __init__(self, **cpus):
    super().__init__("ray")
    self.hosts = {name: {"NodeID": name, "NodeManagerHostname": name, "Alive": True, "Resources": {"CPU": float(n)}}
                  for name, n in cpus.items()}
    self.taken: list[str] = []  # one node per actor
    self.dying: list[bool] = []  # of each answer but those of new actors, whether the actor dies instead

  def init(self, **_):
    pass

  def shutdown(self):
    pass

  def nodes(self):
    return list(self.hosts.values())

  def cluster_resources(self):
    return {"CPU": sum(host["Resources"]["CPU"] for host in self.nodes())}

  def get_runtime_context(self):
    return types.SimpleNamespace(get_node_id=lambda: self.here)

  def remote(self, kind):
    def made(*arguments):
      free = [name for name, host in self.hosts.items() if host["Alive"]]
      node = min(free, key=lambda name: self.taken.count(name) / max(self.hosts[name]["Resources"]["CPU"], 1e-9))
      self.taken.append(node)
      return Handle(self, kind(*arguments), node)
    return types.SimpleNamespace(options=lambda **_: types.SimpleNamespace(remote=made))

  def wait(self, references, num_returns, timeout):
    return references[:1], references[1:]

  def get(self, reference):
    return reference()

  def kill(self, handle):
    handle.hand = None


class Handle:
  """An actor."""

  def __init__(self, ray, hand, node):
    self.hand = hand

    def call(method, *arguments):
      def answer():
        ray.here = node
        found = None if self.hand is None else getattr(self.hand, method)(*arguments)
        dies = method == "take" and ray.dying and ray.dying.pop(0)  # once it is done, before anybody is told
        if dies or self.hand is None or not ray.hosts[node]["Alive"]:
          self.hand = None
          raise RayError("the actor is gone\n\nand more of it")
        return found
      return answer
    for name in ("check", "take"):
      setattr(self, name, types.SimpleNamespace(remote=lambda *arguments, name=name: call(name, *arguments)))
