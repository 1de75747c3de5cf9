"""The hook of mkdocs.yml: what pages say in numbers is read from results/ when the site is built.

A page with `figures: true` at its head is a Jinja template over the functions of `FUNCTIONS`: a figure that is not in
results/ fails the build. Documents that lie elsewhere in the repository, and pictures, are put into the site as well.
"""

import functools
import gzip
import json
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import jinja2

from pi0rag_jax import statistics
from pi0rag_jax.errors import Pi0RagError, unknown_name

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
# Pages of the site by files elsewhere; what experiments say of themselves follows by their folders.
DOCUMENTS = {"workspace.md": "WORKSPACE.md", "contributing.md": "CONTRIBUTING.md"}
PICTURES = ("learning/quickstart/success.png", "learning/quickstart/learning_curve.png",
            "learning/quickstart/latency.png", "learning/tasks_detected/frozen.png")
Z0 = "base_z0"


@functools.cache
def read(file: str) -> dict[str, Any]:
  """Returns a JSON file below results/."""
  path = RESULTS / file
  if not path.is_file():
    raise Pi0RagError(f"no results/{file}")
  return json.loads(path.read_text(encoding="utf8"))


def summary(experiment: str) -> dict[str, Any]:
  """Returns the summary.json of a folder below results/."""
  return read(f"{experiment}/summary.json")


def cell(experiment: str, policy: str, place: str, episodes: int | None = None) -> dict[str, Any]:
  """Returns the evaluation of a policy in a place, 'task/condition'.

  Args:
    episodes: that had taught its memory by then; None where there is one such evaluation.
  """
  found = {(each["policy"], f"{each['task']}/{each['condition']}", each["stream_episodes"]): each
           for each in summary(experiment)["cells"]}
  fitting = [key for key in found if key[:2] == (policy, place) and episodes in (None, key[2])]
  if len(fitting) != 1:
    raise Pi0RagError(f"results/{experiment} has {len(fitting)} evaluations of {policy} in {place} after {episodes} "
                      f"episodes; there are {', '.join(map(str, sorted(found)))}")
  return found[fitting[0]]


def overall(experiment: str, policy: str, episodes: int, baseline: str = Z0) -> dict[str, Any]:
  """Returns what a policy comes to over all its places, against a baseline on the same seeds."""
  for row in summary(experiment)["overall"]:
    if (row["policy"], row["stream_episodes"], row["baseline"]) == (policy, episodes, baseline):
      return row
  raise Pi0RagError(f"results/{experiment} has no means of {policy} after {episodes} episodes against {baseline}")


def row(file: str, **values) -> dict[str, Any]:
  """Returns the one row of a measurement's JSON file with these values."""
  found = [each for each in read(file)["rows"] if all(each.get(name) == value for name, value in values.items())]
  if len(found) != 1:
    raise Pi0RagError(f"results/{file} has {len(found)} rows of {values}, expected one")
  return found[0]


def percent(share: float, digits: int = 0) -> str:
  """Returns a share as a number of percent."""
  return f"{round(100 * share, 6):.{digits}f}"  # 57.5 is 57.49... as a product


def between(interval: Iterable[float], digits: int = 0) -> str:
  """Returns an interval of shares, such as '91 to 93'."""
  low, high = interval
  return f"{percent(low, digits)} to {percent(high, digits)}"


def success(experiment: str, policy: str, place: str, episodes: int | None = None) -> str:
  """Returns the percentage of successes."""
  return percent(cell(experiment, policy, place, episodes)["success_rate"])


def paired(experiment: str, policy: str, place: str, episodes: int | None = None, baseline: str = Z0) -> str:
  """Returns how many failures of the baseline were mended and how many successes broken, as '+16 -1'."""
  pair = cell(experiment, policy, place, episodes)["paired_vs"][baseline]
  return f"+{pair['fixed']} -{pair['regressed']}"


def learned_places(experiment: str, after: tuple[int, ...] = (50, 500)) -> str:
  """Returns the table of places in which a memory learned: success from z = 0, then after so many episodes."""
  streams = {each["stream"]: each for each in summary(experiment)["streams"]}
  first, last = after[0], after[-1]
  table = ["| task / condition | z = 0 | " + " | ".join(f"{count} episodes" for count in after)
           + " | failures gone (mended, broken) | taken over |", "|---" * (len(after) + 4) + "|"]
  for place in sorted({each["stream"] for each in summary(experiment)["cells"]
                       if each["policy"] == "memory" and each["stream_episodes"] == first}):
    task, condition = place.split("/")
    rates = [success(experiment, "memory", place, count) for count in after]
    gone = cell(experiment, "memory", place, last)["paired_vs"][Z0]["failures_removed"]
    table.append(f"| `{task}` / {condition} | {success(experiment, Z0, place)} | {' | '.join(rates[:-1])} | "
                 f"**{rates[-1]}** | {percent(gone)} % ({paired(experiment, 'memory', place, last)}) | "
                 f"{streams[place]['corrected_episodes']} |")
  return "\n".join(table)


def ways_of_steering(experiment: str, names: dict[str, str], places: tuple[str, ...], episodes: int = 500) -> str:
  """Returns the table of steering rules in a few places, all reading the same memories.

  Args:
    names: policy -> what the rule does.
  """
  table = [f"| rule | {' | '.join(places)} | mean | n in each |", "|---" * (len(places) + 3) + "|"]
  for policy, text in names.items():
    cells = [cell(experiment, policy, place, None if policy in ("base", Z0) else episodes) for place in places]
    rates, counts = [each["success_rate"] for each in cells], dict.fromkeys(str(each["n"]) for each in cells)
    table.append(f"| {text} | {' | '.join(map(percent, rates))} | {percent(sum(rates) / len(rates))} | "
                 f"{', '.join(counts)} |")
  return "\n".join(table)


def supervisors(folder: str, names: dict[str, str], places: tuple[str, ...], against: str) -> str:
  """Returns the table of ways to be taught: successes by place, how many episodes were helped in.

  Args:
    names: folder below `folder` -> what its supervisor does.
    against: the folder that has the evaluation without memory.
  """
  table = [f"| who teaches | {' | '.join(places)} | all | helped |", "|---" * (len(places) + 3) + "|"]
  alone = [cell(f"{folder}/{against}", Z0, place)["successes"] for place in places]
  table.append(f"| nobody (z = 0) | {' | '.join(map(str, alone))} | {sum(alone)} | |")
  for name, text in names.items():
    counts = [cell(f"{folder}/{name}", "memory", place)["successes"] for place in places]
    helped = sum(each["corrected_episodes"] for each in summary(f"{folder}/{name}")["streams"]
                 if each["stream"] in places)
    table.append(f"| {text} | {' | '.join(map(str, counts))} | {sum(counts)} | {helped} |")
  return "\n".join(table)


def promises() -> str:
  """Returns the table of what a promise costs: streams of made-up and of recorded episodes, all repeated."""
  rows = {(each["scenario"], each["account"]): each for each in read("guarantee/streams.json")["rows"]}
  table = ["| stream | success alone | memory always: broken | success | promised 2 %: broken | success | silent |",
           "|---" * 7 + "|"]
  for scenario in dict.fromkeys(name for name, _ in rows):
    free, kept = rows[scenario, "none"], rows[scenario, "all repeated"]
    table.append(f"| {scenario} | {percent(free['success_alone'])} | {percent(free['broken'], 1)} | "
                 f"{percent(free['success'])} | {percent(kept['broken'], 1)} | {percent(kept['success'])} | "
                 f"{percent(kept['without_memory'])} |")
  return "\n".join(table)


def rounding() -> str:
  """Returns the table of what z = 0 does whose weights are rounded, and what a memory does, against z = 0."""
  alone, *others = map(_outcomes, ("z0", "int8", "memory"))
  table = ["| task / condition | z = 0 | weights rounded to int8 | the memory |", "|---" * 4 + "|"]
  groups = {f"`{task}` / {condition}": [key for key in alone if key[:2] == (task, condition)]
            for task, condition in sorted({key[:2] for key in alone})}
  for name, keys in (groups | {f"**all, of {len(alone)}**": list(alone)}).items():
    pairs = [[(alone[key], other[key]) for key in keys if key in other] for other in others]
    told = [f"{sum(now for _, now in pair)} (+{pair.count((False, True))} -{pair.count((True, False))})"
            for pair in pairs]
    table.append(f"| {name} | {sum(alone[key] for key in keys)} | {' | '.join(told)} |")
  worked = [[other[key] for key, success in alone.items() if success and key in other] for other in others]
  broken = [statistics.wilson(now.count(False), len(now)) for now in worked]
  shares = [f"{percent(each.value, 1)} % [{percent(each.low, 1)}, {percent(each.high, 1)}]" for each in broken]
  return "\n".join([*table, f"| broken of what worked | | {' | '.join(shares)} |"])


def _outcomes(name: str) -> dict[tuple[str, str, int], bool]:
  """Returns (task, condition, seed) -> success of a file of results/rounding; episodes that crashed are left out."""
  with gzip.open(RESULTS / "rounding" / f"{name}.jsonl.gz", "rt", encoding="utf8") as lines:
    found = [json.loads(line) for line in lines]
  return {(each["task"], each["condition"], each["seed"]): each["outcome"] == "success" for each in found
          if each["outcome"] != "crashed"}


def indices(file: str, key_dim: int, recall: float = 0.95) -> str:
  """Returns the table of one search by records and index: of IVF and HNSW the quickest with that recall at least."""
  rows = [each for each in read(file)["rows"] if each["key_dim"] == key_dim]
  table = ["| records | exact, ms | IVF, ms (recall) | HNSW, ms (recall; seconds to build) |", "|---|---|---|---|"]
  for records in dict.fromkeys(each["records"] for each in rows):
    of = {name: [each for each in rows if each["records"] == records and each.get("index") == name]
          for name in ("exact", "ivf", "hnsw")}
    good = {name: [each for each in found if each.get("recall", 0) >= recall] for name, found in of.items()}
    best = {name: min(found, key=lambda each: each["search_p50_ms"], default=None) for name, found in good.items()}
    said = {name: f"{each['search_p50_ms']} ({each['recall']:.2f}" if each else "" for name, each in best.items()}
    missing = {name: "below that recall" if any("recall" in each for each in found) else "not built"
               for name, found in of.items()}
    exact = best["exact"]["search_p50_ms"] if best["exact"] else "not run"
    ivf = f"{said['ivf']})" if best["ivf"] else missing["ivf"]
    hnsw = f"{said['hnsw']}; {best['hnsw']['built_s']:.0f})" if best["hnsw"] else missing["hnsw"]
    table.append(f"| {records:,} | {exact} | {ivf} | {hnsw} |")
  return "\n".join(table)


def made_by(experiment: str) -> str:
  """Returns when, on what and from which commit an experiment came, in one line."""
  told = summary(experiment)["provenance"]
  commit = told["commit"]
  versions = ", ".join(f"{name} {told['versions'][name]}" for name in ("jax", "mujoco", "faiss-cpu")
                       if name in told["versions"])
  return (f"`results/{experiment}`: commit `{commit['hash'][:7]}`{', changed' if commit['dirty'] else ''}, "
          f"{told['timestamp'][:10]}, {told['hardware']['cores']} cores of {told['hardware']['cpu']}, {versions}")


def rule(name: str):
  """Returns the fields of a steering preset."""
  from pi0rag_jax.steering import rules

  return rules.preset(name)


def commands() -> str:
  """Returns the table of all commands."""
  from pi0rag_jax import __main__ as listed

  rows = [f"| `pi0rag {name}` | `python3 -m {command.module}` | {command.text} |"
          for name, command in listed.COMMANDS.items()]
  return "\n".join(["| command | the same as | to |", "|---|---|---|", *rows])


def section(file: str, heading: str) -> str:
  """Returns a section of a document in the repository, without its heading."""
  sections = re.split(r"^## (.+)\n", (ROOT / file).read_text(encoding="utf8"), flags=re.MULTILINE)
  found = dict(zip(sections[1::2], sections[2::2]))
  if heading not in found:
    raise unknown_name(f"section of {file}", heading, found)
  return found[heading].strip()


def experiments() -> dict[str, pathlib.Path]:
  """Returns what experiments say of themselves, by their page's name; the outermost folders alone."""
  return {f"results_{path.parent.name}.md": path for path in sorted(RESULTS.glob("*/README.md"))}


def told() -> str:
  """Returns the list of what experiments say of themselves, by their first headings."""
  titles = {page: path.read_text(encoding="utf8").splitlines()[0].lstrip("# ") for page, path in experiments().items()}
  return "\n".join(f"- [{title}]({page})" for page, title in titles.items())


FUNCTIONS = (cell, overall, row, percent, between, success, paired, learned_places, ways_of_steering, supervisors,
             promises, rounding, indices, made_by, rule, told, commands, section, summary, read)


def render(markdown: str) -> str:
  """Returns a page's text with its figures."""
  environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
  environment.globals |= {function.__name__: function for function in FUNCTIONS}
  return environment.from_string(markdown).render()


def on_files(files, config):
  """Adds documents and pictures that lie outside docs/; MkDocs calls it."""
  from mkdocs.structure.files import File, InclusionLevel

  for page, path in {**{page: ROOT / file for page, file in DOCUMENTS.items()}, **experiments()}.items():
    # A new experiment's page is linked from the results; a line in the navigation may follow.
    files.append(File.generated(config, page, content=path.read_text(encoding="utf8"),
                                inclusion=InclusionLevel.NOT_IN_NAV))
  for picture in PICTURES:
    files.append(File.generated(config, f"pictures/{pathlib.Path(picture).name}",
                                abs_src_path=str(RESULTS / picture)))
  return files


def on_page_markdown(markdown, page, config, files):
  """Fills the figures in; MkDocs calls it."""
  return render(markdown) if page.meta.get("figures") else markdown
