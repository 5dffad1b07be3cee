"""Real servers for the tests and the benchmarks: PostgreSQL, PgBouncer, and a proxy that counts, delays and cuts.

Nothing here knows the package under test; everything speaks the PostgreSQL protocol or starts a program that does.
"""
