"""The tables of memories on a server: made and brought up to date by alembic, checked before anything is written."""

import contextlib

from pi0rag_jax.errors import Pi0RagError
from pi0rag_jax.memory.address import ServerAddress
from pi0rag_jax.memory.postgres.connection import EXTRA, Connection, psycopg

SCHEMA = "pi0rag"
# Of the migrations, in their order. A server may have any of them, or none yet.
REVISIONS = ("1",)
# Advisory locks of ours have two numbers, this one and a memory's; 0 is the tables'.
LOCKS = 0x70693052  # "pi0R"


def found(connection: Connection, address: ServerAddress) -> bool:
  """Returns whether the tables are there. Errors: Pi0RagError for those of a version that this code does not know."""
  return _revision(connection, address) is not None


def prepare(connection: Connection, address: ServerAddress) -> None:
  """Makes the tables what this code writes; several processes at once do it once. Errors: as `found`."""
  if _revision(connection, address) == REVISIONS[-1]:
    return
  connection.execute("SELECT pg_advisory_lock(%s, 0)", (LOCKS,))
  try:
    if _revision(connection, address) != REVISIONS[-1]:
      _migrate(connection)
  finally:
    with contextlib.suppress(psycopg.Error):  # a lost connection has no lock
      connection.execute("SELECT pg_advisory_unlock(%s, 0)", (LOCKS,))


def _revision(connection: Connection, address: ServerAddress) -> str | None:
  """Returns the version of the tables, None where there are none."""
  table = f"{SCHEMA}.alembic_version"
  if connection.execute("SELECT to_regclass(%s)", (table,)).fetchone() == (None,):
    return None
  versions = [version for (version,) in connection.execute(f"SELECT version_num FROM {table}")]
  if not versions:  # a first migration that was taken back
    return None
  if len(versions) > 1 or versions[0] not in REVISIONS:
    raise Pi0RagError(f"{address}: its tables have version {', '.join(versions)}, this code knows "
                      f"{', '.join(REVISIONS)}: it was left as it is; use what wrote it, or a newer pi0rag-jax")
  return versions[0]


def _migrate(connection: Connection) -> None:
  """Runs the migrations that are missing, all or none."""
  # Late: they take most of a second, and only a server without tables needs them.
  try:
    import alembic.command
    import alembic.config
    import sqlalchemy
  except ImportError:
    raise Pi0RagError(EXTRA) from None

  config = alembic.config.Config()
  config.set_main_option("script_location", f"{__package__}:migrations")
  connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
  # The connection is ours; the pool must not roll it back or close it.
  engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: connection,
                                    poolclass=sqlalchemy.StaticPool)
  connection.autocommit = False
  try:
    with engine.connect() as bound:
      config.attributes["connection"] = bound
      alembic.command.upgrade(config, "head")
      bound.commit()
  finally:
    connection.rollback()
    connection.autocommit = True
