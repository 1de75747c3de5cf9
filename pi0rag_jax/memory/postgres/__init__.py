"""A memory on a PostgreSQL server: several write at once, everybody keeps an index of their own and follows."""
