"""The public functions: read the arguments, ask for a plan, run it."""
