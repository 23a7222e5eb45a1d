"""The parts of the training benchmark: what is measured, and the trainers that are timed."""
