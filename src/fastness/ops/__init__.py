"""Operations: one module per capability. The home of every SQL statement and of no rule."""
