"""What a layer keeps of its forward pass for the backward one."""

import flax.linen as nn
import jax

# 'none' keeps all; 'full' keeps a layer's input alone and computes the rest again, as openpi does; 'dots' keeps the
# products with weights, which are most of the work.
POLICIES = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def wrap(layer: type[nn.Module], name: str) -> type[nn.Module]:
  """Returns the layer's class under the policy `name`; its parameters and results stay the same."""
  policy = POLICIES[name]
  # Within a scan the compiler cannot merge both computations anyway.
  return layer if policy is None else nn.remat(layer, prevent_cse=False, policy=policy)
