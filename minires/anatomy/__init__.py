"""What happens inside a residual network: public.

    joins(model, x, y)      at each block, the gradient by the shortcut and by the branch
    paths(model, x, y)      the gradient as a sum over paths by their length, exactly
"""

from minires.anatomy.joins import Join, Joins, joins
from minires.anatomy.paths import Depth, Paths, paths
