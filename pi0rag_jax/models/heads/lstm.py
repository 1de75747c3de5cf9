"""The LSTM head of RoboVLMs and Mobile-VLA, and its streaming form.

Training starts every window from a zero state, so the answer that was trained sees at most `window` steps. A stream is
longer. What it then carries is the configuration's `history`:

- `window`: the answer at each step is that of the window computation over the last `window` steps (of all steps while
  there are fewer). The stream carries one LSTM state for every start that is still within reach, all advanced in one
  product; the oldest answers. RoboVLMs computes its window anew at every step instead, to the same end.
- `episode`: one state is carried since the reset; the answer is that of one window as long as the stream. A `window`th
  of the memory and arithmetic, but after `window` steps further on than anything seen while training.

Both are the same for the first `window` steps.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from pi0rag_jax.errors import unknown_name
from pi0rag_jax.models.heads.base import ActionReadout, FeatureInput, HeadConfig, HeadOutput

HISTORIES = ("window", "episode")
# An open forget gate at the start keeps early steps in memory (Jozefowicz et al., 2015).
FORGET_BIAS = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LstmConfig(HeadConfig):
  """Sizes of the LSTM head; dropout is between layers and before the readout."""

  hidden: int = 1024
  layers: int = 4
  history: str = "window"  # of a stream: one of HISTORIES

  def __post_init__(self):
    super().__post_init__()
    if self.history not in HISTORIES:
      raise unknown_name("history", self.history, HISTORIES)

  @staticmethod
  def counts() -> tuple[str, ...]:
    return "hidden", "layers"


class LstmLayer(nn.Module):
  """One layer; the gates are input, forget, candidate and output, side by side."""

  hidden: int

  def setup(self):
    self.input = nn.Dense(4 * self.hidden, bias_init=_gate_bias)
    # Uniform within 1 / sqrt(hidden), as PyTorch starts.
    scale = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    self.recurrent = self.param("recurrent", scale, (self.hidden, 4 * self.hidden))

  def advance(self, state, gates):
    """Returns the next (h, c), each [..., H], of the input's share of the gates [..., 4H]."""
    h, c = state
    i, f, g, o = jnp.split(gates + h @ self.recurrent, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c

  def __call__(self, x_BWD, mask_BW):
    """Returns h of all steps [B, W, H], from a zero state; a masked step changes nothing."""

    def scan_step(state, inputs):
      gates_BX, valid_B = inputs
      after = self.advance(state, gates_BX)
      state = jax.tree.map(lambda new, old: jnp.where(valid_B[:, None], new, old), after, state)
      return state, state[0]

    zero_BH = jnp.zeros((x_BWD.shape[0], self.hidden))
    # The input's share of all steps is one large product; only the recurrent one is sequential.
    gates_WBX = self.input(x_BWD).swapaxes(0, 1)
    _, h_WBH = jax.lax.scan(scan_step, (zero_BH, zero_BH), (gates_WBX, mask_BW.T))
    return h_WBH.swapaxes(0, 1)

  def step(self, state, x):
    """Returns the next (h, c) for inputs [..., D] that broadcast against the state."""
    return self.advance(state, self.input(x))


class LstmHead(nn.Module):
  """See `base` for the interface."""

  config: LstmConfig

  def setup(self):
    c = self.config
    self.inputs = FeatureInput(c)
    self.layers = [LstmLayer(c.hidden) for _ in range(c.layers)]
    self.dropout = nn.Dropout(c.dropout)
    self.readout = ActionReadout(c)

  def __call__(self, features_BWD, mask_BW, *, train: bool = False) -> HeadOutput:
    """Returns the answers [B, W, T, ...]; W may be longer than the configured window."""
    x_BWD = self.inputs(features_BWD)
    for layer in self.layers:
      x_BWD = self.dropout(layer(x_BWD, mask_BW), deterministic=not train)
    return self.readout(x_BWD)

  def init_state(self, batch: int) -> dict:
    """Returns zeros: `h`, `c` float[B, R, layers, H] of R starts, and `count` int32[B], the steps so far."""
    c = self.config
    starts = c.window if c.history == "window" else 1
    zeros = jnp.zeros((batch, starts, c.layers, c.hidden))
    return {"h": zeros, "c": zeros, "count": jnp.zeros(batch, jnp.int32)}

  def step(self, state: dict, features_BD):
    """Returns (the next state, the answer [B, T, ...] of the oldest start within reach)."""
    count_B, starts = state["count"], state["h"].shape[1]
    # Start number n is in slot n % starts; what was there has just left the window.
    slot_B = count_B % starts
    opens_BR = (jnp.arange(starts) == slot_B[:, None]) & (self.config.history == "window")
    h, c = (jnp.where(opens_BR[..., None, None], 0.0, state[name]) for name in ("h", "c"))
    x = self.inputs(features_BD)[:, None]
    nexts = []
    for i, layer in enumerate(self.layers):
      nexts.append(layer.step((h[:, :, i], c[:, :, i]), x))
      x = nexts[-1][0]
    oldest_B = jnp.where(count_B < starts, 0, (slot_B + 1) % starts)
    answer_BH = jnp.take_along_axis(x, oldest_B[:, None, None], axis=1)[:, 0]
    h, c = (jnp.stack(parts, axis=2) for parts in zip(*nexts))
    return {"h": h, "c": c, "count": count_B + 1}, self.readout(answer_BH)


def _gate_bias(key, shape, dtype=jnp.float32):
  """Returns the first bias of the gates."""
  hidden = shape[0] // 4
  return jnp.zeros(shape, dtype).at[hidden : 2 * hidden].set(FORGET_BIAS)
