"""Accelerators that programs can be compiled for without having them: what the compilers must know of each.

A GPU's compiler asks for sizes that only a device or its data sheet tells; a TPU's knows its own. Clocks of TPUs are
what their matrix units' peak (`train.utilization`) comes to.
"""

import dataclasses
import importlib.util
import os

from pi0rag_jax.errors import Pi0RagError

EXTRA = "pip install 'pi0rag-jax[aot]'"
# Before jax is imported: no accelerator is looked for, and two processes may load a TPU's library, which complains of a
# host without a name.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
               "TPU_WORKER_HOSTNAMES": "localhost"}


@dataclasses.dataclass(frozen=True)
class Gpu:
  """An NVIDIA GPU, by its data sheet and the CUDA programming guide's table of compute capabilities."""

  kind: str  # as jax names it
  capability: str
  memory_GB: float
  bandwidth_TB_per_s: float
  cores: int  # streaming multiprocessors
  clock_GHz: float
  l2_MB: int
  threads_per_core: int
  shared_KiB: int  # of a streaming multiprocessor; a block may have 1 KiB less

  @property
  def compute_capability(self) -> str | None:
    return self.capability

  def devices(self, count: int) -> list:
    """Returns so many devices of one host, to compile for."""
    for version in ("13", "12"):
      if importlib.util.find_spec("jax_plugins") and importlib.util.find_spec(f"jax_plugins.xla_cuda{version}"):
        return _topology(count, platform="cuda", topology_name="gpu", target_config=self._config(),
                         topology=f"1x1x{count}")
    raise Pi0RagError(f"no compiler for the {self.kind}: the package jax-cuda13-plugin is missing; {EXTRA}")

  def _config(self) -> str:
    """Returns XLA's description of a device, a text proto."""
    major, minor = self.capability.split(".")
    fields = {
      "threads_per_block_limit": 1024, "threads_per_warp": 32, "shared_memory_per_block": 49152,
      "shared_memory_per_core": 1024 * self.shared_KiB, "shared_memory_per_block_optin": 1024 * (self.shared_KiB - 1),
      "threads_per_core_limit": self.threads_per_core, "core_count": self.cores, "fpus_per_core": 128,
      "block_dim_limit_x": 2147483647, "block_dim_limit_y": 65535, "block_dim_limit_z": 65535,
      "memory_bandwidth": round(1e12 * self.bandwidth_TB_per_s), "l2_cache_size": self.l2_MB << 20,
      "clock_rate_ghz": self.clock_GHz, "device_memory_size": round(1e9 * self.memory_GB),
      "registers_per_core_limit": 65536, "registers_per_block_limit": 65536}
    numbers = " ".join(f"{name}: {value}" for name, value in fields.items())
    capability = f"cuda_compute_capability {{ major: {major} minor: {minor} }}"
    return (f'gpu_device_info {{ {numbers} {capability} }} platform_name: "CUDA" '
            f'dnn_version_info {{ major: 9 minor: 12 patch: 0 }} device_description_str: "{self.kind}"')


@dataclasses.dataclass(frozen=True)
class Tpu:
  """A TPU chip."""

  kind: str
  version: str  # of the topology's name
  memory_GB: float
  clock_GHz: float
  # Slices by their number of devices; a v4 or v5p is of three dimensions.
  slices: tuple[str, ...] = ("2x2", "2x4", "4x4", "4x8", "8x8")

  compute_capability = None

  def devices(self, count: int) -> list:
    """Returns so many devices, to compile for: those of the smallest slice that has them."""
    if not importlib.util.find_spec("libtpu"):
      raise Pi0RagError(f"no compiler for the {self.kind}: the package libtpu is missing; {EXTRA}")
    for name in self.slices:
      size = 1
      for side in name.split("x"):
        size *= int(side)
      if size >= count:
        return _topology(count, platform="tpu", topology_name=f"{self.version}:{name}")
    raise Pi0RagError(f"--devices={count} of a {self.kind}: its largest slice here is {self.slices[-1]}")


_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")
TARGETS: dict[str, Gpu | Tpu] = {
  "a100": Gpu("NVIDIA A100-SXM4-80GB", "8.0", 85.0, 2.04, 108, 1.41, 40, 2048, 164),
  "rtx4090": Gpu("NVIDIA GeForce RTX 4090", "8.9", 25.3, 1.01, 128, 2.52, 72, 1536, 100),
  "h100": Gpu("NVIDIA H100 80GB HBM3", "9.0", 85.0, 3.35, 132, 1.98, 50, 2048, 228),
  "h200": Gpu("NVIDIA H200", "9.0", 151.0, 4.8, 132, 1.98, 50, 2048, 228),
  "b200": Gpu("NVIDIA B200", "10.0", 191.0, 8.0, 148, 1.97, 126, 2048, 228),
  "tpu-v4": Tpu("TPU v4", "v4", 34.4, 1.05, _CUBES),
  "tpu-v5e": Tpu("TPU v5e", "v5e", 17.2, 1.5),
  "tpu-v5p": Tpu("TPU v5p", "v5p", 102.0, 1.75, _CUBES),
  "tpu-v6e": Tpu("TPU v6e", "v6e", 34.4, 1.75),
}


def prepare() -> None:
  """Has jax, which must not be imported yet, look for no accelerator."""
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)


def _topology(count: int, **description) -> list:
  from jax.experimental import topologies  # after `prepare`

  return topologies.get_topology_desc(**description).devices[:count]
