"""Training: recipes, the loop, runs that can be resumed, evaluation.

    run = minires.training.fit("resnet20", train_set, test_set, out="runs/first")
    run.trained.predict(images)
"""

from minires.training import recipes
from minires.training.curve import plot_curve
from minires.training.evaluate import Evaluation, evaluate
from minires.training.finiteness import NotFiniteError
from minires.training.fit import Run, epoch_header, epoch_line, fit
from minires.training.modelfile import TrainedModel, load_model, save_model
from minires.training.normalization import Normalization
from minires.training.precision import PRECISIONS, MixedPrecision
from minires.training.recipes import Recipe
from minires.training.runs import RunFolder, default_folder
from minires.training.trainer import EpochMetrics, Progress, Trainer
