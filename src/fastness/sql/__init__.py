"""How operations speak to a database: statements, programs, the schema and its migrations, records in rows."""
