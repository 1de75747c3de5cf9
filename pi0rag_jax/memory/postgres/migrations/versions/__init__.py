"""Versions of the tables, for alembic."""
