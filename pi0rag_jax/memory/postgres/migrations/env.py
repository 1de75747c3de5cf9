"""What alembic runs: the migrations, on the connection that `postgres.schema` hands over, in its transaction."""

from alembic import context

from pi0rag_jax.memory.postgres.schema import SCHEMA

context.configure(connection=context.config.attributes["connection"], version_table_schema=SCHEMA,
                  transactional_ddl=True)
with context.begin_transaction():
  context.run_migrations()
