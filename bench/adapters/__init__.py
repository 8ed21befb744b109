"""Turn the rows of public incident sets into surveys.

Owns:  the reading of each set's files and the comparison of its two windows.
Never: knows an answer, or is imported by the product.
"""
