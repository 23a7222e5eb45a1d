"""The papers' figures and tables as experiments: trained at a scale, analyzed, drawn and judged by a stated rule.

A file of the folder ``experiments/reproduce`` holds one of them (`experiment`). `reproduce` runs it and packs what came
out (`results`); the verdicts follow from the packed runs alone (`rules`), and the page of the documentation from the
packed results (`page`).
"""

from landscape.reproduction.experiment import Experiment, Scale, load_experiment, names
from landscape.reproduction.records import Record
from landscape.reproduction.results import Result, read_results
from landscape.reproduction.verdict import Row

__all__ = ["Experiment", "Record", "Result", "Row", "Scale", "load_experiment", "names", "read_results"]
