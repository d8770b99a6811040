"""Loads the Hypothesis profile for every test of this folder, also for those that share no strategy."""

import strategies  # noqa: F401
