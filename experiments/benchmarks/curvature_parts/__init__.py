"""The parts of the curvature benchmark: the workload and its truth, the tools, what a process measures, tables."""
