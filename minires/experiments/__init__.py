"""The papers' experiments, each a function that returns numbers and describes them: public.

    from minires import experiments

    settings = experiments.Settings.choose("out", quick=True)
    folder = experiments.carry_out("degradation", settings, log=print)
    print((folder / "report.md").read_text())
"""

from minires.experiments.lab import Lab, Plan, Trained
from minires.experiments.recording import Recording, record_training
from minires.experiments.registry import EXPERIMENTS, Experiment, carry_out
from minires.experiments.report import Report, Table
from minires.experiments.settings import Sets, Settings
from minires.experiments.statistics import Difference, Spread
