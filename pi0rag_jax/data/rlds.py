"""RLDS data sets as TensorFlow Datasets writes them to TFRecords, Open X-Embodiment's among them."""

import collections
import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pi0rag_jax import lfs
from pi0rag_jax.data import checks, pictures, rlds_features, tfrecord
from pi0rag_jax.data.dataset import (
  DEFAULT_FIELDS,
  Arrays,
  DamagedEpisode,
  Dataset,
  EpisodeData,
  Fields,
  choose_cameras,
  prompt_or_default,
  reason,
)
from pi0rag_jax.data.formats import is_hidden, natural_key
from pi0rag_jax.errors import Pi0RagError, unknown_name

STATES = ("observation/state", "observation/proprio")
ACTIONS = "action"
PROMPTS = ("language_instruction", "observation/natural_language_instruction", "observation/language_instruction",
           "observation/instruction")
SHARD = re.compile(r".+-(?P<split>[^-]+)\.tfrecord(-\d{5}-of-\d{5})?")
STEPS = "steps/"
DEFAULT_FPS = 10.0  # RLDS does not say
PARSED_EPISODES = 4


class RldsDataset(Dataset):
  """One episode a record, in the order of shards and records. Opening reads every record once, for its length."""

  format = "rlds"
  options = ("split",)

  def __init__(self, path, *, fields: Fields = DEFAULT_FIELDS, skip_bad: bool = False, split: str = "train"):
    super().__init__(path, fields=fields, skip_bad=skip_bad)
    self.fps = float(fields.fps or DEFAULT_FPS)
    self._folder = find_version(self.path)
    self._steps, self._episode_features = rlds_features.read_features(self._folder)
    pictures_of = {name: leaf for name, leaf in self._steps.items() if leaf.is_picture}
    self.camera_keys = choose_cameras(
      {name.removeprefix("observation/"): leaf.why_not_rgb for name, leaf in pictures_of.items()}, fields.cameras)
    self._records: list[tuple[Path, int, int]] = []
    self._parsed: collections.OrderedDict[int, Any] = collections.OrderedDict()
    self._lock = threading.Lock()
    lengths = []
    for shard in self._shards(split):
      lengths += self._index(shard)
    self.lengths = np.asarray(lengths, np.int64)
    self._check_number(split)

  def _shards(self, split: str) -> list[Path]:
    splits = {}
    for file in sorted(self._folder.iterdir(), key=natural_key):
      if (match := SHARD.fullmatch(file.name)) and not is_hidden(file, self._folder):
        splits.setdefault(match["split"], []).append(file)
    if split not in splits:
      raise unknown_name(f"split of '{self._folder}'", split, splits)
    return splits[split]

  def _check_number(self, split: str) -> None:
    """Counts as damaged what dataset_info.json announces and no shard holds."""
    file = self._folder / "dataset_info.json"
    if not file.is_file():
      return
    with self._damage(f"'{file}'"):
      splits = {entry["name"]: entry for entry in checks.read_json(file).get("splits", [])}
      lengths = splits.get(split, {}).get("shardLengths", [])
      announced = sum(checks.integer(number, f"'{file}': shardLengths") for number in lengths)
    if announced > len(self._records) + len(self.damaged):
      text = f"'{file}' announces {announced} episodes in '{split}', its shards hold {len(self._records)}"
      self.count_damage(f"'{split}'", DamagedEpisode(text))

  def _index(self, shard: Path) -> list[int]:
    """Notes every readable record of a shard, and returns their numbers of frames."""
    lengths = []
    records = tfrecord.scan(shard)
    while True:
      name = f"record {len(lengths)} in '{shard}'"
      try:
        with self._damage(f"'{shard}'"):
          place = self._next(records, shard)
        if place is None:
          return lengths
        name = f"the record at byte {place[0] - tfrecord.HEADER.size} in '{shard}'"
        with self._damage(name):
          length = self._length(tfrecord.parse_example(tfrecord.read_record(shard, *place)))
      except DamagedEpisode as error:
        self.count_damage(name, error)
        continue
      self._records.append((shard, *place))
      lengths.append(length)

  @staticmethod
  def _next(records: Iterator[tuple[int, int]], shard: Path) -> tuple[int, int] | None:
    try:
      return next(records, None)
    except ValueError as error:
      raise ValueError(lfs.reason(shard, error)) from error

  def _length(self, example: dict) -> int:
    """Returns how many steps a record holds, by its actions first: texts and pictures can come in several per step."""
    chosen = self.fields.actions or ACTIONS
    first = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    names = sorted(self._steps, key=lambda name: (name not in first, self._steps[name].kind != "tensor"))
    counts = (self._steps[name].frames(example[STEPS + name]) for name in names if STEPS + name in example)
    length = next((count for count in counts if count is not None), None)
    if not length:
      raise ValueError("no steps")
    return length

  def episode_name(self, episode: int) -> str:
    shard, offset, _ = self._records[episode]
    return f"episode {episode} (byte {offset - tfrecord.HEADER.size}) in '{shard}'"

  def files(self) -> list[Path]:
    return sorted({record[0] for record in self._records})

  def _load(self, episode: int) -> dict:
    """Returns the features of an episode's record; the last few stay in memory."""
    with self._lock:
      if episode in self._parsed:
        return self._parsed[episode]
    example = tfrecord.parse_example(tfrecord.read_record(*self._records[episode]))
    with self._lock:
      self._parsed[episode] = example
      while len(self._parsed) > PARSED_EPISODES:
        self._parsed.popitem(last=False)
    return example

  def _read_arrays(self, episode: int) -> EpisodeData:
    example, length = self._load(episode), int(self.lengths[episode])
    arrays = Arrays()
    for name, leaf in self._steps.items():
      if leaf.kind == "tensor" and not leaf.is_picture and STEPS + name in example:
        arrays.add(name, lambda name=name, leaf=leaf: leaf.decode(example[STEPS + name], length))
    metadata = {}
    for name, leaf in self._episode_features.items():
      if name in example and leaf.kind in ("text", "tensor"):
        with contextlib.suppress(Exception):  # of what nobody asked for
          metadata[name] = leaf.decode(example[name], 1)[0]
    prompts = [prompt_or_default(text, self.fields.default_prompt) for text in self._prompts(example, metadata, length)]
    state = self.fields.state or next((name for name in STATES if name in arrays | arrays.unread), STATES[0])
    return EpisodeData(
      state=arrays.joined(state, what="state"),
      actions=arrays.joined(self.fields.actions or ACTIONS, what="actions"),
      prompts=prompts,
      timestamps=np.arange(length) / self.fps,
      extras=dict(arrays),
      metadata=metadata,
    )

  def _prompts(self, example: dict, metadata: dict, length: int) -> list[str]:
    """Returns the chosen texts, or those of the first usual field that is there and not empty in every step."""
    chosen = self.fields.prompt
    if chosen is not None and isinstance(metadata.get(chosen), str):
      return [metadata[chosen]] * length
    texts = [name for name, leaf in self._steps.items() if STEPS + name in example and (
      leaf.kind == "text" or (leaf.is_code_points and name in (chosen, *PROMPTS)))]
    if chosen is not None and chosen not in texts:
      texts += [name for name, value in metadata.items() if isinstance(value, str)]
      raise unknown_name("field for the prompt", chosen, texts)
    found = [""] * length
    for name in (chosen,) if chosen is not None else [name for name in PROMPTS if name in texts]:
      try:
        found = self._steps[name].texts(example[STEPS + name], length)
      except Exception as error:
        raise ValueError(f"'{name}', of the prompt: {reason(error)}") from error
      if any(text.strip() for text in found):
        break
    return found

  def _read_camera(self, episode: int, key: str, indices: np.ndarray) -> np.ndarray:
    name = key if key in self._steps else f"observation/{key}"
    stored = self._steps[name].decode(self._load(episode)[STEPS + name], int(self.lengths[episode]))
    if isinstance(stored, np.ndarray):
      return pictures.as_rgb(stored[indices])
    return pictures.stack([pictures.decode(stored[i]) for i in indices], indices.tolist())


def find_version(path: Path) -> Path:
  """Returns the folder with features.json at or below `path`.

  Raises:
    Pi0RagError: there is none, or several versions.
  """
  folders = sorted({file.parent for file in path.rglob("features.json") if not is_hidden(file, path)})
  if len(folders) != 1:
    found = ", ".join(str(folder) for folder in folders) or "none"
    raise Pi0RagError(f"'{path}' needs one RLDS data set (a folder with features.json), found: {found}")
  return folders[0]
