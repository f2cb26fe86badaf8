"""Getting the pinned source, and the series as commits on it."""
