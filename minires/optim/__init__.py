"""Optimisers, and schedules of the learning rate."""

from minires.optim.adam import Adam, AdamW
from minires.optim.optimizer import Optimizer
from minires.optim.schedules import Constant, Cosine, MultiStep, OneCycle, Plateau, Schedule
from minires.optim.sgd import SGD
