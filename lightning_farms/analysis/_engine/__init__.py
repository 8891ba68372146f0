"""How weights become rows of a report: planned, decomposed in groups, checked, measured, and shared among processes."""
