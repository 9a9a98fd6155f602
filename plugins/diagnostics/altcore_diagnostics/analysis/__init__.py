"""Estimators that the monitors of a run are made of, each tested against known answers.

They know of no run. What is not finite they leave out if they say so, and otherwise hand on.
"""
