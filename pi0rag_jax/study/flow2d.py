"""Flow matching beside diffusion, on a distribution that is known: paths, errors, where z = 0 ends, and steering."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pi0rag_jax.models import flow
from pi0rag_jax.study import learning, plane, steered
from pi0rag_jax.study.learning import Training
from pi0rag_jax.study.plane import Field, Mixture

# Three ways to do the same thing, one of them preferred.
MODES = Mixture((0.5, 0.3, 0.2), tuple((round(1.3 * math.cos(angle), 3), round(1.3 * math.sin(angle), 3))
                                       for angle in map(math.radians, (90, 210, 330))), 0.2)
STEPS = (1, 2, 5, 10, 100)
WEIGHTS = (0.5, 0.502, 0.51, 0.55, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the right one of two modes
ITERATIONS = (1, 2, 5, 10, 20)
FIELD_TIMES = (0.9, 0.5, 0.1)
# What a record asks for: a mode that the policy knows, and a place beside one, as where the world has changed.
ASKED = {"another mode": (-1.12, -0.65), "beside its mode": (0.7, 1.3)}
_ASIDE = 0.6  # of actions that the flow was not trained on
SHOWN = 48  # paths in a picture
DEFAULT = Training()
GRID, REACH = 41, 4.0  # points of noise in a row, and how far out they go


@dataclasses.dataclass(frozen=True)
class Flow2d:
  """What was measured, as rows of plain values, and what pictures show."""

  rows: Sequence[Mapping[str, Any]]  # each has a `measure`
  settings: Mapping[str, Any]
  paths: Mapping[str, np.ndarray]  # sampler -> [N + 1, SHOWN, 1, 2]
  fields: Mapping[float, tuple[np.ndarray, np.ndarray]]  # time -> places and velocities there
  basins: tuple[np.ndarray, np.ndarray]  # noise [GRID**2, 2], and the mode that each ends nearest to
  steering: Mapping[str, Mapping[str, steered.Steered]]  # asked -> preset
  inverted: Mapping[str, np.ndarray]  # asked -> the noise of which the flow would make it


def study(mixture: Mixture = MODES, training: Training = DEFAULT, *, steps: Sequence[int] = STEPS, draws: int = 1000,
          seeds: int = 3) -> Flow2d:
  """Returns what flow and diffusion make of a mixture.

  Args:
    draws: samples that are compared with as many of the mixture.
    seeds: trainings of each, whose errors are averaged.
  """
  rows: list[dict[str, Any]] = []
  fields = {}
  for kind in learning.KINDS:
    began = time.monotonic()
    fields[kind] = [learning.learned(kind, mixture, training, seed=seed) for seed in range(seeds)]
    rows.append({"measure": "training", "kind": kind, "loss": float(np.mean([loss for _, loss in fields[kind]])),
                 "seconds_each": (time.monotonic() - began) / seeds})
  learned_fields = {kind: [field for field, _ in found] for kind, found in fields.items()}
  errors, paths = _errors(mixture, learned_fields, steps, draws)
  field = learned_fields[learning.FLOW][0]
  steering = {asked: {preset: steered.steer(field, [place], preset) for preset in steered.PRESETS}
              for asked, place in ASKED.items()}
  rows += [*errors, *_single(), *_zero(mixture), *_field_errors(mixture, field), *_steering(steering),
           *_inversion(mixture, field)]
  places_BTA, axis = _grid(REACH, GRID), _grid(2.0, 13)
  return Flow2d(
    [{name: _plain(value) for name, value in row.items()} for row in rows],
    {"mixture": dataclasses.asdict(mixture), "training": dataclasses.asdict(training), "draws": draws, "seeds": seeds,
     "steering_steps": steered.NUM_STEPS, "aside": _ASIDE},
    paths, {at: (np.asarray(axis)[:, 0], np.asarray(field(axis, at))[:, 0]) for at in FIELD_TIMES},
    (np.asarray(places_BTA)[:, 0], mixture.mode(steered.end(field, places_BTA))), steering,
    {asked: np.asarray(steered.inverted(field, jnp.asarray([[place]])))[0, 0] for asked, place in ASKED.items()})


def samplers(mixture: Mixture, fields: Mapping[str, Sequence[Field]], seed: int) -> dict[tuple[str, str], Any]:
  """Returns functions of (start, number of steps) to paths, by (sampler, field)."""

  def diffusion(field, schedule=plane.LINEAR, rng=None):
    return lambda start_BTA, count: plane.diffusion_path(field, start_BTA, count, schedule=schedule, rng=rng)

  def straight(field):
    return lambda start_BTA, count: plane.flow_path(field, start_BTA, count)

  noise = fields[learning.DIFFUSION][seed]
  return {
    ("flow", "learned"): straight(fields[learning.FLOW][seed]),
    ("flow", "exact"): straight(plane.exact_velocity(mixture)),
    ("ddim", "learned"): diffusion(noise),
    ("ddim", "exact"): diffusion(plane.exact_noise(mixture, plane.LINEAR)),
    ("ddim_cosine", "exact"): diffusion(plane.exact_noise(mixture, plane.COSINE), plane.COSINE),
    ("ddpm", "learned"): diffusion(noise, rng=jax.random.key(1000 + seed)),
  }


def _errors(mixture: Mixture, fields: Mapping[str, Sequence[Field]], steps: Sequence[int], draws: int
            ) -> tuple[list[dict], dict[str, np.ndarray]]:
  """Returns rows of the distance to the mixture, and some paths of ten steps."""
  wanted_BTA = mixture.even(draws, seed=0)
  measured: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
  shown, floors = {}, []
  for seed in range(len(fields[learning.FLOW])):
    floors.append(plane.wasserstein(mixture.even(draws, seed=2000 + 10 * seed), wanted_BTA))
    start_BTA = plane.even_noise(len(wanted_BTA), seed=3000 + seed)
    for (name, of), path in samplers(mixture, fields, seed).items():
      for count in steps:
        path_NBTA = np.asarray(path(start_BTA, count))
        error = plane.wasserstein(path_NBTA[-1], wanted_BTA)
        measured.setdefault((name, of, count), []).append((error, plane.detour(path_NBTA)))
      if of == "learned" and seed == 0:
        shown[name] = np.asarray(path(start_BTA, steered.NUM_STEPS))[:, :SHOWN]
  rows: list[dict] = [{"measure": "floor", "error": float(np.mean(floors)), "least": min(floors), "most": max(floors)}]
  for (name, of, count), found in measured.items():
    errors, detours = zip(*found)
    rows.append({"measure": "error", "sampler": name, "field": of, "steps": count, "error": np.mean(errors),
                 "least": min(errors), "most": max(errors), "detour": np.mean(detours)})
  return rows, shown


def _single() -> list[dict]:
  """Returns rows of the detours to a single mode, in closed form: where nothing is left open, paths do not bend."""
  one, start_BTA = Mixture((1.0,), ((1.3, 0.0),), 0.2), plane.even_noise(SHOWN, seed=0)
  found = {"flow": plane.flow_path(plane.exact_velocity(one), start_BTA, 100),
           "ddim": plane.diffusion_path(plane.exact_noise(one, plane.LINEAR), start_BTA, 100, schedule=plane.LINEAR)}
  return [{"measure": "single", "sampler": name, "detour": plane.detour(path)} for name, path in found.items()]


def _zero(mixture: Mixture) -> list[dict]:
  """Returns rows of where z = 0 ends, in closed form: for the mixture, and for two modes of various weights."""
  rows = []
  for count in STEPS:
    end_A = _end_of_zero(mixture, count)
    rows.append({"measure": "zero", "steps": count, "x": end_A[0], "y": end_A[1],
                 "from_mean": np.linalg.norm(end_A - mixture.mean_A),
                 "from_mode": np.linalg.norm(end_A - np.asarray(mixture.mean_CA), axis=1).min()})
    for weight in WEIGHTS:
      two = Mixture((1 - weight, weight), ((-1.0, 0.0), (1.0, 0.0)), mixture.std)
      rows.append({"measure": "zero_of_two", "weight": weight, "steps": count, "x": _end_of_zero(two, count)[0],
                   "mean": two.mean_A[0]})
  return rows


def _end_of_zero(mixture: Mixture, count: int) -> np.ndarray:
  return np.asarray(plane.flow_path(plane.exact_velocity(mixture), jnp.zeros((1, 1, 2)), count))[-1, 0, 0]


def _field_errors(mixture: Mixture, field: Field) -> list[dict]:
  """Returns rows of how far the learned velocity is from the exact one, where noisy actions are."""
  rows, exact = [], plane.exact_velocity(mixture)
  action_BTA = mixture.sample(jax.random.key(4), 1000)
  noise_BTA = jax.random.normal(jax.random.key(5), action_BTA.shape)
  for at in FIELD_TIMES:
    x_BTA, _ = flow.interpolate(action_BTA, noise_BTA, jnp.full(len(action_BTA), at))
    wanted_BTA = exact(x_BTA, at)
    apart = np.sqrt(np.square(field(x_BTA, at) - wanted_BTA).mean() / np.square(wanted_BTA).mean())
    rows.append({"measure": "field", "time": at, "relative_error": apart})
  return rows


def _steering(found: Mapping[str, Mapping[str, steered.Steered]]) -> list[dict]:
  return [{"measure": "steering", "asked": asked, "preset": preset, "x": one.end_TA[0, 0], "y": one.end_TA[0, 1],
           "apart": np.linalg.norm(one.end_TA[0] - np.asarray(ASKED[asked])),
           "away": np.linalg.norm(np.asarray(ASKED[asked]) - one_of["residual"].path_NTA[-1, 0])}
          for asked, one_of in found.items() for preset, one in one_of.items()]


def _inversion(mixture: Mixture, field: Field) -> list[dict]:
  """Returns rows of how near inverted noise comes to its actions, and how unlike noise it is."""
  rows, own_BTA = [], mixture.sample(jax.random.key(6), 256)
  for of, action_BTA in {"own": own_BTA, "aside": own_BTA + jnp.asarray([_ASIDE, 0.0])}.items():
    for count in ITERATIONS:
      apart_B = steered.round_trip(field, action_BTA, iterations=count)
      length_B = np.linalg.norm(np.asarray(steered.inverted(field, action_BTA, iterations=count)), axis=(-2, -1))
      rows.append({"measure": "inversion", "of": of, "iterations": count, "error_p50": np.quantile(apart_B, 0.5),
                   "error_p95": np.quantile(apart_B, 0.95), "noise_length_p50": np.quantile(length_B, 0.5)})
  return rows


def _grid(reach: float, count: int) -> jax.Array:
  """Returns float32[count**2, 1, 2], places up to `reach` from the origin."""
  line = jnp.linspace(-reach, reach, count)
  return jnp.stack(jnp.meshgrid(line, line), axis=-1).reshape(-1, 1, 2)


def _plain(value):
  """Returns a value as JSON has it, floats to four digits."""
  if isinstance(value, str | int):
    return value
  return float(f"{float(value):.4g}") if np.isfinite(value) else None
