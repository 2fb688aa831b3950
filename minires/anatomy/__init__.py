"""What happens inside a residual network: public.

    joins(model, x, y)      at each block, the gradient by the shortcut and by the branch
    paths(model, x, y)      the gradient as a sum over paths by their length, exactly
"""

from minires.anatomy.features import (
    first_filters,
    grad_cam,
    guided_backprop,
    refinement,
    saliency,
)
from minires.anatomy.joins import Join, Joins, joins
from minires.anatomy.paths import Depth, Paths, paths
from minires.anatomy.receptive import receptive_field, top_patches
from minires.anatomy.truths import bottleneck_cost, neuron_chain, vanishing
from minires.anatomy.truths_trained import learn_identity, small_responses
