"""The page of a curation: it loads nothing, says what was kept, and draws what there is."""

import xml.etree.ElementTree as ElementTree

import judged
import numpy as np
import pytest

from pi0rag_jax.curation import figures, report
from pi0rag_jax.curation.selection import Selection
from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.pages import panels

NAN = np.nan


def make_scored(**changes) -> figures.Scored:
  fields = {"name": "demos", "scores_J": np.array([0.9, 0.1, 0.8, 0.3, NAN]),
            "positive_J": np.array([1.0, 0.0, 1.0, 0.0, 1.0]), "lengths_J": np.arange(4, 9),
            "classes": ("flawed", "clean"), "threshold": 0.5}
  return figures.Scored(**(fields | changes))


def make_curation(path="demos", **changes) -> report.Curation:
  kept_J = np.array([True, False, True, False, False])
  fields = {"selections": [Selection(str(path), make_scored().scores_J, kept_J, 0.5, "fixed", {"by": "<b>"})],
            "demonstrations": [make_scored()]}
  return report.Curation(**(fields | changes))


def test_the_page_loads_nothing_and_escapes_what_it_shows(tmp_path):
  dataset = judged.write(tmp_path / "data")
  curation = make_curation(
    rollouts=[make_scored(name="rollouts", classes=("failed", "succeeded"))],
    embeddings=[figures.Embedded("rollouts", np.random.default_rng(0).normal(size=(20, 5)), np.repeat([0.0, 1.0], 10))],
    results=[{"classifier": "step_mlp", "AUROC": "0.93"}], facts={"frames": "30"},
    clips=report.demonstration_clips(dataset, make_scored(), np.ones(5, bool), count=1, notes=["<i>"] * 5))
  page = report.write_report(tmp_path / "out", curation).read_text()
  assert "2 of 5 demonstrations are kept, 40 %." in page and "0.93" in page
  assert "<b>;" not in page and "by &lt;b&gt;" in page and "&lt;i&gt;" in page
  assert "http" not in page.split("<body>")[1].replace("data:", "")
  names = {path.name for path in (tmp_path / "out").iterdir()}
  assert names == {"report.html"} | {f"{name}.png" for name in report.CHARTS}


def test_what_there_is_not_is_left_out(tmp_path):
  unknown = make_scored(positive_J=np.full(5, NAN))
  page = report.write_report(tmp_path, make_curation(demonstrations=[unknown])).read_text()
  assert "How well the scores tell" not in page and "The best" not in page
  assert {path.name for path in tmp_path.iterdir()} == {"report.html", "scores.png", "lengths.png"}
  with pytest.raises(Pi0RagError, match="1 selections and 0 scored data sets"):
    report.write_report(tmp_path, make_curation(demonstrations=[]))


def test_films_are_of_the_best_and_the_worst(tmp_path):
  clips = report.demonstration_clips(judged.write(tmp_path), make_scored(), np.ones(5, bool), count=3)
  assert [(clip["kind"], clip["episode"]) for clip in clips] == [("best", 0), ("best", 2), ("worst", 1), ("worst", 3)]
  assert [len(clip["frames"]) for clip in clips] == [4, 6, 5, 7] and (clips[3]["frames"] == 3).all()


def test_panels_say_in_words_what_they_show():
  (roc,) = figures.roc_panels([make_scored()])
  # All clean ones score higher; of the four with a score the clean ones are the shorter in three pairs of four.
  assert "area 1.000; by length alone 0.750" in roc.alt
  (turned,) = figures.roc_panels([make_scored(lengths_J=np.arange(9, 4, -1))])
  assert "by length alone 0.750" in turned.alt
  (scores,) = figures.score_panels([make_scored()])
  assert "flawed: 2 episodes, mean 0.20" in scores.alt and "from 0.50 on kept" in panels.svg(scores)
  (lengths,) = figures.length_panels([make_scored()])
  assert "rank correlation -0.40, 4 episodes" in lengths.alt
  (constant,) = figures.length_panels([make_scored(lengths_J=np.full(5, 4))])
  assert "does not vary" in constant.alt
  (calibration,) = figures.calibration_panels([make_scored()])
  assert "0.10 gives 0 % of 1" in calibration.alt and "0.90 gives 100 % of 1" in calibration.alt
  assert not figures.calibration_panels([make_scored(scores_J=np.arange(5) * 1.0)])
  for panel in (roc, scores, lengths, calibration):
    ElementTree.fromstring(panels.svg(panel))


def test_the_projection_finds_the_plane_of_the_points():
  rng = np.random.default_rng(0)
  plane_N2 = rng.normal(size=(50, 2)) * (3.0, 1.0)
  axes_2F = np.linalg.qr(rng.normal(size=(6, 2)))[0].T
  found_N2, shares = figures.project(plane_N2 @ axes_2F + 7.0)
  apart = lambda points: np.linalg.norm(points[:, None] - points[None], axis=-1)  # noqa: E731
  np.testing.assert_allclose(apart(found_N2), apart(plane_N2), atol=1e-9)
  assert shares.sum() == pytest.approx(1.0) and shares[0] > 0.8
  np.testing.assert_array_equal(found_N2, figures.project(plane_N2 @ axes_2F + 7.0)[0])
  with pytest.raises(Pi0RagError, match="no two dimensions"):
    figures.project(np.zeros((1, 6)))
