"""The proof: a fleet of real processes on one database, treated badly, and a checker that looks at what is left.

``python -m tests.proof --help`` runs it in full size; the tests run it in small.
"""
