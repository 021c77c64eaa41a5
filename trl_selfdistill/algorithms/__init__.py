"""The algorithms: one file each, formula, configuration and trainer."""
