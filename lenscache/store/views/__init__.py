"""A store as other tools see it: a selection of its rows, as xarray and pandas, or as files."""
