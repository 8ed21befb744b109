"""Measures the product against goals and peers; not shipped.

Owns:  the figures of the README, each printed by one command.
Never: asserts speed in a test, tunes the product to a set, commits a data set.
"""
