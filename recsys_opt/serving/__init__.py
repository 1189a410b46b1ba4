"""Multi-path serving: profiles, workloads, simulation, bounds."""
