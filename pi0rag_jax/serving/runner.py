"""Runs a policy that `python -m pi0rag_jax.policy export` wrote, beside which a copy of this file lies.

It needs jax (and flatbuffers, which jax reads programs with) and numpy.

  runner = Runner("FOLDER", memory="MEMORY")  # a memory is read once, and searched with faiss
  actions = runner.infer(observation)["actions"]  # float32[T, A], in the robot's units

`python run.py` repeats the example that the policy answered when it was exported. An observation is `image` {camera:
uint8[H, W, 3]}, `state` float[P] and `prompt`: what a plain robot or the simulated Panda sees itself, of others (where
export.json says "raw": false) what is left after their own conversion, before anything is normalized. Pictures have
the model's size; cameras may be marked as absent by `image_mask` {camera: False}. Prompts other than those in
export.json need the package sentencepiece.
"""

import json
import pathlib
import sqlite3
import sys
import warnings

import jax
import numpy as np

PROMPT_BUCKET = 16  # tokens
LANES = 16  # FAISS compares this many numbers at once


class Runner:
  """The policy in a folder."""

  def __init__(self, folder, memory=None, *, unit_distance=None, seed=0):
    """Reads parameters and memory; each program is compiled at its first call.

    Args:
      memory: folder of a memory of this policy; None runs the policy alone, by one program.
      unit_distance: by which distances of keys are divided, where export.json says none.
      seed: of the noise, for a policy that draws it anew for each decision.
    """
    self._folder = pathlib.Path(folder)
    self.about = json.loads((self._folder / "export.json").read_text())
    with np.load(self._folder / "arrays.npz") as stored:
      self._start_TX, self._low_P, self._scale_P = (stored[name] for name in ("start", "state_low", "state_scale"))
    with np.load(self._folder / "params.npz") as stored:
      self._leaves = [jax.device_put(stored[str(i)].view(dtype)) for i, dtype in enumerate(self.about["dtypes"])]
    self._memory = None if memory is None else Memory(memory, self.about, unit_distance)
    self._programs, self._tokenizer, self._rng = {}, None, jax.random.key(seed)

  def infer(self, observation, *, noise=None, trust=1.0) -> dict:
    """Returns `actions` float32[T, A]; with a memory also `base` (the policy's own), `key`, `used` (how many records
    had a say), their `ids` and `weights`.

    Args:
      noise: float[T, X], where the flow starts; None is the policy's own start.
      trust: how much of the memory's change is made, from 0 to 1.
    """
    inputs = self.inputs(observation)
    length, start_BTX = inputs["tokenized_prompt"].shape[1], self._start(noise)
    if self._memory is None:
      return {"actions": np.asarray(self._program(f"sample_{length}")(self._leaves, inputs, start_BTX))[0]}
    *_, key_BE = encoded = self._program(f"encode_{length}")(self._leaves, inputs)
    base_BTA = self._program(f"decode_{length}")(self._leaves, encoded, start_BTX)
    ids_BK, neighbours = self._memory.nearest(np.asarray(key_BE))
    found = self._program("steer")(base_BTA, neighbours, np.array([trust], np.float32))
    actions, used, weights = (np.asarray(array)[0] for array in found)
    return {"actions": actions, "base": np.asarray(base_BTA)[0], "key": np.asarray(key_BE)[0], "used": int(used),
            "ids": ids_BK[0], "weights": weights}

  def inputs(self, observation) -> dict:
    """Returns the programs' inputs of an observation."""
    about, masks = self.about, observation.get("image_mask", {})
    cameras = [name for name in observation["image"] if masks.get(name, True)]
    if sorted(cameras) != sorted(about["cameras"]):
      raise ValueError(f"the observation has the cameras {sorted(cameras)}; exported: {sorted(about['cameras'])}")
    image = {name: np.asarray(observation["image"][name])[None] for name in about["cameras"]}
    for name, picture in image.items():
      if picture.dtype != np.uint8 or list(picture.shape[1:]) != about["cameras"][name]:
        raise ValueError(f"{name} is {picture.dtype}{list(picture.shape[1:])}; exported: uint8{about['cameras'][name]}")
    state = np.asarray(observation["state"])
    if state.shape != (about["state_dim"],) or not np.isfinite(state).all():
      raise ValueError(f"state has shape {state.shape}, or NaN; exported: finite numbers ({about['state_dim']},)")
    state = (state - self._low_P) / self._scale_P
    state = state * 2.0 - 1.0 if about["quantile"] else state
    ids = self._tokens(observation.get("prompt", about["default_prompt"]), state)
    most = about["max_tokens"]
    if len(ids) > most:
      warnings.warn(f"the prompt has {len(ids)} tokens, the model takes {most}: the end is cut off", stacklevel=3)
    count = min(len(ids), most)
    length = min(-(-max(count, 1) // PROMPT_BUCKET) * PROMPT_BUCKET, most)
    tokens_L = np.zeros(length, np.int32)
    tokens_L[:count] = ids[:count]
    return {"image": image, "state": np.pad(state, (0, about["state_size"] - len(state)))[None].astype(np.float32),
            "tokenized_prompt": tokens_L[None], "tokenized_prompt_mask": (np.arange(length) < count)[None]}

  def _tokens(self, prompt, state) -> list:
    """Returns the tokens of a prompt, and of the state where the model reads it as text."""
    if prompt is None:
      raise ValueError("the observation has no prompt, and the policy no default")
    text = prompt.strip().replace("_", " ").replace("\n", " ")
    if text in self.about["prompts"]:
      return self.about["prompts"][text]
    if self._tokenizer is None:
      import sentencepiece

      self._tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(self._folder / "tokenizer.model"))
    if not self.about["discrete_state"]:
      return self._tokenizer.encode(text, add_bos=True) + self._tokenizer.encode("\n")
    bins = np.digitize(state, np.linspace(-1, 1, 257)[:-1]) - 1
    return self._tokenizer.encode(f"Task: {text}, State: {' '.join(map(str, bins))};\nAction: ", add_bos=True)

  def _start(self, noise) -> np.ndarray:
    if noise is None and self.about["memory"]["start"] == "new":
      self._rng, own = jax.random.split(self._rng)
      noise = jax.random.normal(own, self._start_TX[None].shape)[0]
    return np.asarray(self._start_TX if noise is None else noise, np.float32)[None]

  def _program(self, name: str):
    if name not in self._programs:
      path = self._folder / f"{name}.stablehlo"
      if not path.is_file():
        raise ValueError(f"no program {path.name}: prompts of that many tokens were not exported")
      exported = jax.export.deserialize(bytearray(path.read_bytes()))
      options = self.about["compiler_options"]["steer" if name == "steer" else "policy"]
      self._programs[name] = jax.jit(exported.call, compiler_options=options.get(jax.default_backend()))
    return self._programs[name]


class Memory:
  """The records of a memory's file as they are now, by kind."""

  def __init__(self, folder, about: dict, unit_distance):
    import faiss

    self._unit, self._about, self._kinds = about["unit_distance"] or unit_distance, about, {}
    if self._unit is None:
      raise ValueError("nobody measured the policy's keys: give unit_distance, or export with --memory")
    if str(folder).startswith(("postgresql:", "postgres:")):
      raise ValueError("a program reads the folder of a memory: `pi0rag_jax.memory backup ADDRESS FOLDER` makes one")
    path = pathlib.Path(folder).expanduser().resolve() / "memory.sqlite3"
    file = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)
    header = dict(file.execute("SELECT name, value FROM header"))
    for name, wanted in about["memory"].items():
      if header.get(name, str(wanted)) != str(wanted):
        raise ValueError(f"the memory's {name} is {header[name]}, the policy's {wanted}: it is of another policy")
    width = about["memory"]["key_dim"]
    apart = any(row[1] == "quarantine" for row in file.execute("PRAGMA table_info(records)"))
    searched = "WHERE kind = ? AND quarantine = ''" if apart else "WHERE kind = ?"
    query = f"SELECT id, key, base, corrected FROM records JOIN arrays USING (id) {searched} ORDER BY id"
    for kind in about["shares"]:
      rows = file.execute(query, (kind,)).fetchall()
      ids, keys, *chunks = zip(*rows) if rows else ((),) * 4
      keys_ME = self._padded(np.frombuffer(b"".join(keys), "<f4").reshape(-1, width))
      index = faiss.IndexScalarQuantizer(keys_ME.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
      index.add(keys_ME)
      self._kinds[kind] = np.array(ids, np.int64), index, *map(self._chunks, chunks)
    file.close()

  def nearest(self, key_BE):
    """Returns (ids int64[1, K], what `steer` takes of them); ties by rising id."""
    horizon, dim = (self._about["memory"][name] for name in ("action_horizon", "action_dim"))
    places = sum(self._about["shares"].values())
    ids_BK = np.full((1, places), -1)
    chunks_2BKTA = np.zeros((2, 1, places, horizon, dim), self._about["memory"]["chunk_dtype"])
    distance_BK, kind_BK, first = np.full((1, places), np.inf, np.float32), np.full((1, places), -1, np.int8), 0
    for kind, most in self._about["shares"].items():
      ids, index, base_MTA, corrected_MTA = self._kinds[kind]
      wanted, fetched = min(most, len(ids)), min(most + 1, len(ids))
      while wanted:
        squared, rows = index.search(self._padded(key_BE), fetched)
        if fetched == len(ids) or squared[0, -1] > squared[0, wanted - 1]:
          break
        fetched = min(2 * fetched, len(ids))
      if wanted:
        order = np.lexsort((ids[rows[0]], squared[0]))[:wanted]
        rows, slots = rows[0, order], np.s_[0, first : first + wanted]
        ids_BK[slots], distance_BK[slots] = ids[rows], np.sqrt(squared[0, order])
        chunks_2BKTA[0][slots], chunks_2BKTA[1][slots] = base_MTA[rows], corrected_MTA[rows]
        kind_BK[slots] = self._about["kinds"].index(kind)
      first += most
    return ids_BK, {"base_BKTA": chunks_2BKTA[0], "corrected_BKTA": chunks_2BKTA[1], "kind_BK": kind_BK,
                    "distance_BK": (distance_BK / self._unit).astype(np.float32), "mask_BK": kind_BK >= 0,
                    "trust_BK": np.ones((1, places), np.float32)}

  def _padded(self, keys_ME) -> np.ndarray:
    width = -(-keys_ME.shape[1] // LANES) * LANES
    return np.ascontiguousarray(np.pad(keys_ME.astype(np.float32), ((0, 0), (0, width - keys_ME.shape[1]))))

  def _chunks(self, blobs) -> np.ndarray:
    header = self._about["memory"]
    return np.frombuffer(b"".join(blobs), header["chunk_dtype"]).reshape(
      -1, header["action_horizon"], header["action_dim"])


def read_observation(path) -> tuple[dict, dict]:
  """Returns (observation, the other arrays) of a file as `example.npz`."""
  with np.load(path) as stored:
    arrays = dict(stored)
  image = {name.removeprefix("image/"): arrays.pop(name) for name in list(arrays) if name.startswith("image/")}
  return {"image": image, "state": arrays.pop("state"), "prompt": str(arrays.pop("prompt"))}, arrays


if __name__ == "__main__":
  here = pathlib.Path(__file__).resolve().parent
  seen, known = read_observation(sys.argv[1] if len(sys.argv) > 1 else here / "example.npz")
  answer = Runner(here).infer(seen, noise=known.get("noise"))["actions"]
  print(answer)
  if "actions" in known:
    print(f"at most {np.abs(answer - known['actions']).max():g} from what the policy answered when it was exported")
