"""Documents: their figures are those of results/, and what they name is there."""

import importlib.util
import pathlib
import re

import pytest

from pi0rag_jax.errors import Pi0RagError

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*/README.md")])


@pytest.fixture(scope="module")
def figures():
  spec = importlib.util.spec_from_file_location("figures", ROOT / "docs/figures.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_every_page_with_figures_is_filled(figures):
  pages = [page for page in ROOT.glob("docs/*.md") if page.read_text("utf8").startswith("---\nfigures: true\n")]
  assert {"method.md", "results.md", "limits.md"} <= {page.name for page in pages}
  for page in pages:
    filled = figures.render(page.read_text("utf8"))
    assert "{{" not in filled and "{%" not in filled and "None" not in filled, page


def test_the_table_of_the_readme_is_the_one_of_the_results(figures):
  readme = (ROOT / "README.md").read_text("utf8")
  assert figures.learned_places("learning/tasks") in readme and len(readme.splitlines()) <= 150


def test_a_figure_says_what_was_measured(figures):
  assert figures.success("learning/quickstart", "memory", "pick_and_place/camera_shift_double") == "89"
  assert figures.paired("learning/quickstart", "memory", "pick_and_place/camera_shift_double") == "+18 -3"
  assert [figures.percent(115 / 200), figures.percent(0.9236, 1)] == ["58", "92.4"]
  assert figures.between((0.9, 0.931)) == "90 to 93"


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{{ success('learning/quickstart', 'base', 'pouring/nominal') }}", "has 0 evaluations of base in pouring/nominal"),
    ("{{ success('learning/tasks', 'memory', 'stacking/camera_shift') }}", "has 3 evaluations of memory"),
    ("{{ overall('learning/tasks', 'memory', 51) }}", "no means of memory after 51 episodes"),
    ("{{ row('bench/retrieval.json', records=1) }}", "has 0 rows of {'records': 1}"),
    ("{{ summary('nothing') }}", "no results/nothing/summary.json"),
    ("{{ section('WORKSPACE.md', 'Opn') }}", "Did you mean 'Open'"),
  ],
)
def test_a_figure_that_is_not_there_fails(figures, text, message):
  with pytest.raises(Pi0RagError, match=re.escape(message)):
    figures.render(text)


def test_links_lead_somewhere(figures):
  """MkDocs checks those between pages; the documents around them are read on their own as well."""
  made = {*figures.DOCUMENTS, *figures.experiments(), *(f"pictures/{pathlib.Path(p).name}" for p in figures.PICTURES)}
  for document in DOCUMENTS:
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", document.read_text("utf8")):
      if not target.startswith("http"):
        assert (document.parent / target).exists() or (document.parent.name == "docs" and target in made), \
          f"{document}: {target}"


def test_commands_and_configurations_exist():
  for document in DOCUMENTS:
    text = document.read_text("utf8")
    for name in set(re.findall(r"python3? -m ((?:pi0rag_jax|eval|train)[\w.]*\w)", text)):
      path = ROOT / name.replace(".", "/")
      assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{document}: python -m {name}"
    for name in set(re.findall(r"\bconfigs/\w+\.py", text)) - {"configs/X.py"}:
      assert (ROOT / name).is_file(), f"{document}: {name}"


def test_flags_in_documents_are_those_of_their_commands():
  shared = "".join((ROOT / name).read_text("utf8") for name in ("pi0rag_jax/cli.py", "pi0rag_jax/cluster.py",
                                                                "train/distributed.py"))
  for document in DOCUMENTS:
    text = document.read_text("utf8").replace("\\\n", " ")
    for name, arguments in re.findall(r"python3? -m ((?:pi0rag_jax|eval|train)[\w.]*\w)([^`\n]*)", text):
      path = ROOT / name.replace(".", "/")
      source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf8") + shared
      for flag in set(re.findall(r"--(\w[\w-]*)", arguments)):
        assert f'"{flag}"' in source or f'"--{flag}"' in source or flag == "config", f"{document}: {name} --{flag}"
