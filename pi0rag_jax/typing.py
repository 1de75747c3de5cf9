"""The dimension key that every array name in this project uses as a suffix, and the shared types.

Letters: `B` batch, `T` action step in a chunk, `A` action dim, `P` proprioceptive dim, `S` prefix token,
`L` prompt token, `D` model width, `N` attention head, `H` head dim, `K` neighbour, `E` key dim, `M` memory record,
`X` the model's action dim, to which a robot's is padded, `F` frame of a data set, `J` episode (a job). `keys_ME` is
therefore float[M, E]: one key of E numbers for each of M records. A letter that is not here is declared at the head of
its file.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray
# A nested dict of arrays, as flax makes them and openpi stores them.
Params: TypeAlias = Mapping[str, Any]
# An experiment's ml_collections.ConfigDict. Its entries are made at run time, and the type that ConfigDict declares for
# every one of them (a union of all it can hold, None included) fits no use.
Config: TypeAlias = Any
