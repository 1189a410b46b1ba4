"""Where the rows of embedding tables go: hardware, cost, solver, replay."""
