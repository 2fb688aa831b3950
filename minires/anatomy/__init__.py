"""What happens inside a residual network: public.

    joins(model, x, y)             at each block, the gradient by the shortcut and by the branch
    paths(model, x, y)             the gradient as a sum over paths by their length, exactly
    single_paths(model, x, y)      gradients of drawn single paths, as Veit et al. measured them
    lesion_study(model, (x, y))    error with blocks deleted or exchanged
    responses(model, x)            standard deviation of each layer's response
    gradient_norms(model, x, y)    size of the gradient by depth
    histograms(model, x)           distributions of activations and weights
    Recorder(model, x, y)          responses and gradients while a net trains
    to_plain(model)                the same function without shortcuts; plain_report: what it costs
    shortcuts_from_identity(net)   identities in a plain net's kernels, written as shortcuts
    saliency, guided_backprop, grad_cam(model, x)     what a class score depends on
    first_filters, refinement, top_patches, receptive_field    what channels look at
    vanishing, neuron_chain, learn_identity, small_responses, bottleneck_cost    small truths

Every function works on a copy: the model, its statistics and the random numbers stay as they are.
Results are dataclasses with `table()`, which is text, and `plot(path)`, which is a figure.
"""

from minires.anatomy.features import (
    first_filters,
    grad_cam,
    guided_backprop,
    refinement,
    saliency,
)
from minires.anatomy.joins import Join, Joins, joins
from minires.anatomy.lesions import (
    DeletedBlock,
    Lesion,
    LesionStudy,
    deletable_blocks,
    delete_blocks,
    delete_random,
    deleted_blocks,
    kendall_tau,
    lesion_study,
    random_blocks,
    random_swaps,
    swap_blocks,
)
from minires.anatomy.paths import Depth, Paths, SinglePaths, paths, single_paths
from minires.anatomy.plain import PlainCost, PlainReport, plain_report, to_plain
from minires.anatomy.profiles import (
    GradientNorms,
    Histograms,
    ModelHistograms,
    Responses,
    gradient_norms,
    histograms,
    responses,
)
from minires.anatomy.receptive import receptive_field, top_patches
from minires.anatomy.recorder import Moment, Recorder
from minires.anatomy.truths import bottleneck_cost, neuron_chain, vanishing
from minires.anatomy.truths_trained import learn_identity, small_responses
from minires.anatomy.written import WrittenBlock, WrittenNet, shortcuts_from_identity
