"""The parts of the slice benchmark: models and bare forward passes, the peers, what a process measures, tables."""
