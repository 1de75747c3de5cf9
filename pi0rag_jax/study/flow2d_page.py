"""What the page of `flow2d` shows: its charts, and what they say in words."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes

from pi0rag_jax.pages.panels import LIGHT, Panel
from pi0rag_jax.study import steered
from pi0rag_jax.study.flow2d import ASKED, REACH, STEPS, Flow2d
from pi0rag_jax.study.report import Section

SQUARE_INCHES = 3.4
_COLOURS = (LIGHT["blue"], LIGHT["amber"], LIGHT["green"], LIGHT["purple"], LIGHT["red"])
_PRESET_COLOURS = dict(zip(steered.PRESETS, (LIGHT["green"], LIGHT["blue"], LIGHT["grey"], LIGHT["amber"],
                                             LIGHT["red"], LIGHT["purple"])))
SAMPLERS = {"flow": "flow matching (Euler)", "ddim": "diffusion, DDIM (linear betas)",
            "ddim_cosine": "diffusion, DDIM (cosine)", "ddpm": "diffusion, DDPM (random steps)"}
_SAMPLER_COLOURS = dict(zip(SAMPLERS, (LIGHT["green"], LIGHT["blue"], LIGHT["purple"], LIGHT["amber"])))


def sections(found: Flow2d) -> list[Section]:
  """Returns the page's parts."""
  means = np.asarray(found.settings["mixture"]["mean_CA"])
  return [
    Section("paths", "Paths from noise to action",
            "A flow learns, for each noisy action and time, the mean of the straight ways from noise to action "
            "that pass there. Given its action each way is straight; their mean bends where several actions are still "
            "open. A diffusion keeps the variance, and its ODE (DDIM) bends elsewhere; DDPM adds new noise at each "
            "step and wanders. The table says how much longer paths are than straight lines: where modes compete the "
            "flow's are no straighter than DDIM's, and to a single mode both are nearly straight. Time runs as in "
            "openpi: 1 is noise, 0 the action; most papers count the other way.",
            _path_panels(found, means), _detours(found)),
    Section("fields", "The velocity that was learned",
            "At t = 0.9 little is decided: everything flows to the middle of all actions. The later, the more each "
            "place knows where it belongs. pi0 draws its training times from Beta(1.5, 1), which leans towards noise; "
            "most papers draw them uniformly.", [_field_panel(found, at, means) for at in found.fields]),
    Section("errors", "Error by number of steps",
            "The 2-Wasserstein distance between as many samples (exact, by optimal assignment). Dashed lines follow "
            "the exact field, known in closed form: what they miss is the steps' fault, and the rest is the network's. "
            "With the exact field, DDIM on a cosine schedule errs as the flow does: for few steps the schedule "
            "counts, not the name. What a diffusion foresees is noise, and in a single step, from t = 1, what the "
            "network misses of it is divided by next to nothing.", [_error_panel(found)], _errors_table(found)),
    Section("zero", "Where z = 0 ends",
            "A single step ends at the mean of all actions, wherever it starts: an action that may lie between all "
            "modes, where nobody ever acted. With more steps z = 0 ends near the mode with most weight, on the side "
            "of the others. Only between equals it stays in the middle: a policy that starts at z = 0 then does "
            "neither of two things.", [_basin_panel(found, means), _weight_panel(found)]),
    Section("steering", "What steering does to a path",
            "One record, right here, asks for an action; these are the project's own rules. Where it asks for another "
            "mode, all but the bounded one (traceflow) come there. Where it asks for an action that the policy never "
            "saw, as after a camera was moved, the rest of a flow that is let go half way (injection, warm start) "
            "leads back to what the policy knows; a residual after the flow ends where it was asked to, less what the "
            "policy's own vote keeps (2 %). Rules read a record each; anchors and failures where a preset asks for "
            "them.",
            [_steering_panel(found, asked, means) for asked in ASKED], _steering_table(found)),
    Section("inversion", "The noise of an action",
            f"Each of {steered.NUM_STEPS} steps is undone by a fixed point, as FlowDAgger does. For actions as the "
            "policy's own, five evaluations a step find the noise; for actions beside them the fixed points may not "
            "converge, and what is found is farther out than noise is (in two dimensions half of all noise is within "
            "1.18).", [_inversion_panel(found)]),
  ]


def headline(found: Flow2d) -> str:
  """Returns what came out, in one sentence."""
  errors = {row["steps"]: row["error"] for row in _rows(found, "error", sampler="flow", field="learned")}
  least, most = min(errors), max(errors)
  return (f"Flow matching in the plane: an error of {errors[least]:.2f} with {_steps(least)}, {errors[most]:.2f} with "
          f"{_steps(most)}, where chance alone makes {_rows(found, 'floor')[0]['error']:.2f}.")


def facts(found: Flow2d) -> dict[str, str]:
  """Returns what stands at the top of the page."""
  trained = {row["kind"]: row["seconds_each"] for row in _rows(found, "training")}
  return {**{f"seconds to train a {kind}": f"{seconds:.0f}" for kind, seconds in trained.items()},
          "trainings of each": str(found.settings["seeds"])}


def _rows(found: Flow2d, measure: str, **values) -> list:
  return [row for row in found.rows
          if row["measure"] == measure and all(row[name] == value for name, value in values.items())]


def _steps(count: int) -> str:
  return f"{count} step{'s' * (count > 1)}"


def _square(axes: Axes, reach: float, *, high: float | None = None) -> None:
  """Shows the plane, the same in both directions, at least up to `reach` from the origin (`high` upwards)."""
  axes.set_xlim(-reach, reach, auto=True)  # may be widened
  axes.set_ylim(-(high or reach), high or reach, auto=True)
  axes.set_aspect("equal", adjustable="datalim")  # a box that shrinks would cut titles off
  axes.spines["bottom"].set_visible(False)
  axes.set_xticks([])
  axes.set_yticks([])


def _log_errors(axes: Axes) -> None:
  axes.set_yscale("log")
  axes.yaxis.set_major_formatter("{x:g}")


def _modes(axes: Axes, means: np.ndarray) -> None:
  axes.plot(*means.T, "+", color=LIGHT["ink"], markersize=9, markeredgewidth=1.5, zorder=5)


def _path_panels(found: Flow2d, means: np.ndarray) -> list[Panel]:
  def drawing(path_NBTA: np.ndarray) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
      for path_NA in path_NBTA[:, :, 0].swapaxes(0, 1):
        colour = _COLOURS[int(np.linalg.norm(means - path_NA[-1], axis=1).argmin()) % len(_COLOURS)]
        axes.plot(*path_NA.T, color=colour, linewidth=0.8, alpha=0.7)
        axes.plot(*path_NA[-1], "o", color=colour, markersize=2.5)
      axes.plot(*path_NBTA[0, :, 0].T, ".", color=LIGHT["grey"], markersize=2.5)
      _modes(axes, means)
      _square(axes, 2.8)

    return draw

  return [Panel(f"{SAMPLERS[name]}, {len(path) - 1} steps", f"Paths of {path.shape[1]} points from noise to actions.",
                drawing(path), SQUARE_INCHES) for name, path in found.paths.items()]


def _detours(found: Flow2d) -> list[dict[str, str]]:
  most = max(row["steps"] for row in _rows(found, "error"))
  single = {row["sampler"]: f"{row['detour']:.2f}" for row in _rows(found, "single")}
  return [{f"paths over straight lines, {_steps(most)}": f"{SAMPLERS[row['sampler']]}, {row['field']} field",
           "all modes": f"{row['detour']:.2f}",
           "a single mode": single.get(row["sampler"], "") if row["field"] == "exact" else ""}
          for row in _rows(found, "error", steps=most)]


def _field_panel(found: Flow2d, at: float, means: np.ndarray) -> Panel:
  places_BA, velocity_BA = found.fields[at]
  error = _rows(found, "field", time=at)[0]["relative_error"]

  def draw(axes: Axes) -> None:
    # Against time: where the next steps go.
    axes.quiver(*places_BA.T, *-velocity_BA.T, color=LIGHT["blue"], angles="xy", width=0.005)
    _modes(axes, means)
    _square(axes, 2.2)

  return Panel(f"t = {at:g}", f"Arrows of the way to go at t = {at:g}; the learned field is {100 * error:.0f} % off "
               "the exact one.", draw, SQUARE_INCHES)


def _error_panel(found: Flow2d) -> Panel:
  rows, floor = _rows(found, "error"), _rows(found, "floor")[0]["error"]
  curves = {}
  for row in rows:
    curves.setdefault((row["sampler"], row["field"]), []).append(row)

  def draw(axes: Axes) -> None:
    for (name, of), curve in curves.items():
      counts, errors = ([row[key] for row in curve] for key in ("steps", "error"))
      axes.plot(counts, errors, "o-" if of == "learned" else "--", color=_SAMPLER_COLOURS[name], markersize=4,
                linewidth=1.5, label=SAMPLERS[name] + (", exact field" if of == "exact" else ""))
    axes.axhline(floor, color=LIGHT["grey"], linewidth=1, linestyle=":", label="chance alone")
    axes.set_xscale("log")
    _log_errors(axes)
    counts = sorted({row["steps"] for row in rows})
    axes.set_xticks(counts, list(map(str, counts)))
    axes.minorticks_off()
    axes.set_xlabel("steps")
    axes.legend(frameon=False, fontsize=6.5)
    axes.grid(axis="y")

  words = "; ".join(f"{SAMPLERS[row['sampler']]} {row['field']}, {_steps(row['steps'])}: {row['error']:.2f}"
                    for row in rows)
  return Panel("Distance to the actions (2-Wasserstein)", words, draw, 3.4)


def _errors_table(found: Flow2d) -> list[dict[str, str]]:
  table = {}
  for row in _rows(found, "error"):
    line = table.setdefault((row["sampler"], row["field"]),
                            {"sampler": f"{SAMPLERS[row['sampler']]}, {row['field']} field"})
    line[_steps(row["steps"])] = f"{row['error']:.2f} [{row['least']:.2f}, {row['most']:.2f}]"
  return list(table.values())


def _basin_panel(found: Flow2d, means: np.ndarray) -> Panel:
  noise_BA, mode_B = found.basins

  def draw(axes: Axes) -> None:
    for mode in range(len(means)):
      axes.plot(*noise_BA[mode_B == mode].T, "s", color=_COLOURS[mode % len(_COLOURS)], markersize=3.5, alpha=0.35,
                markeredgewidth=0)
    axes.plot(0, 0, "o", color=LIGHT["ink"], markersize=6, label="z = 0")
    for (asked, noise_A), marker in zip(found.inverted.items(), "^D"):
      axes.plot(*noise_A, marker, color=LIGHT["red"], markersize=6, label=f"of {_words(asked)}")
    axes.legend(frameon=False, fontsize=7, loc="lower left", ncols=3, bbox_to_anchor=(0, 1), borderaxespad=0.1)
    _square(axes, REACH)

  return Panel("Which noise ends at which mode", "The plane of the noise, coloured by the mode that it ends at.", draw,
               SQUARE_INCHES)


def _weight_panel(found: Flow2d) -> Panel:
  def draw(axes: Axes) -> None:
    for count, colour in zip(STEPS, (LIGHT["red"], LIGHT["amber"], LIGHT["purple"], LIGHT["blue"], LIGHT["green"])):
      rows = _rows(found, "zero_of_two", steps=count)
      axes.plot([100 * row["weight"] for row in rows], [row["x"] for row in rows], "o-", color=colour, markersize=3,
                label=_steps(count))
    axes.set_xlabel("weight of the right mode, %")
    axes.set_yticks([0, 1], ["between", "right mode"])
    axes.legend(frameon=False, fontsize=8)
    axes.grid(axis="y")

  return Panel("Two modes: where z = 0 ends", "; ".join(
    f"weight {100 * row['weight']:g} %: {row['x']:.2f} of the way with {_steps(row['steps'])}"
    for row in _rows(found, "zero_of_two") if row["steps"] in (1, 10)), draw, SQUARE_INCHES)


def _steering_panel(found: Flow2d, asked: str, means: np.ndarray) -> Panel:
  def draw(axes: Axes) -> None:
    for preset, one in found.steering[asked].items():
      path_NA = np.concatenate([one.path_NTA[:, 0], one.end_TA])
      axes.plot(*path_NA.T, ".-", color=_PRESET_COLOURS[preset], linewidth=1.2, markersize=3, alpha=0.8, label=preset)
      axes.plot(*one.end_TA[0], "o", color=_PRESET_COLOURS[preset], markersize=5)
    axes.plot(*ASKED[asked], "x", color=LIGHT["ink"], markersize=10, markeredgewidth=2, zorder=6)
    _modes(axes, means)
    axes.legend(frameon=False, fontsize=7, loc="lower center", ncols=3)
    _square(axes, 2.0, high=1.7)

  return Panel(f"A record asks for {_words(asked)}", "; ".join(
    f"{row['preset']} ends {row['apart']:.2f} away from it" for row in _rows(found, "steering", asked=asked)), draw,
    SQUARE_INCHES)


def _words(asked: str) -> str:
  return {"another mode": "another mode", "beside its mode": "a place beside its mode"}[asked]


def _steering_table(found: Flow2d) -> list[dict[str, str]]:
  apart = {(row["preset"], row["asked"]): row["apart"] for row in _rows(found, "steering")}
  away = {row["asked"]: row["away"] for row in _rows(found, "steering")}
  return [{"rule": f"{preset}: {text}",
           **{f"{_words(asked)}: ends off by (of {away[asked]:.2f})": f"{apart[preset, asked]:.3f}" for asked in ASKED}}
          for preset, text in steered.PRESETS.items()]


def _inversion_panel(found: Flow2d) -> Panel:
  names = {"own": ("as the policy's own", LIGHT["green"]), "aside": ("beside them", LIGHT["red"])}

  def draw(axes: Axes) -> None:
    for of, (text, colour) in names.items():
      rows = _rows(found, "inversion", of=of)
      for quantile, style in (("error_p50", "o-"), ("error_p95", "s--")):
        axes.plot([row["iterations"] for row in rows], [max(row[quantile] or np.nan, 1e-6) for row in rows], style,
                  color=colour, markersize=4, label=f"{text}, {'median' if quantile == 'error_p50' else '95 %'}")
    _log_errors(axes)
    axes.set_xticks([row["iterations"] for row in _rows(found, "inversion", of="own")])
    axes.set_xlabel("evaluations a step")
    axes.legend(frameon=False, fontsize=7)
    axes.grid(axis="y")

  return Panel("How far the noise's action is off", "; ".join(
    f"{names[row['of']][0]}, {row['iterations']} evaluations: median {row['error_p50']}"
    for row in _rows(found, "inversion")), draw, 3.0)
