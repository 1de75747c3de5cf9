"""The first tables. A record stays when it is evicted, so that any version can be read: it is there from the commit
`added` on, before the commit `removed`. `history` has what was counted of it before each commit that changed that.
Both are kept for versions from `oldest` on.
"""

from alembic import op

revision = "1"
down_revision = None

_COUNTERS = """
  use_count bigint NOT NULL, helped double precision NOT NULL, hurt double precision NOT NULL,
  episode bigint NOT NULL, quarantine text NOT NULL"""


def upgrade() -> None:
  op.execute("""
    CREATE TABLE pi0rag.memories (
      id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, header json NOT NULL,
      version bigint NOT NULL DEFAULT 0, oldest bigint NOT NULL DEFAULT 0, last_id bigint NOT NULL DEFAULT 0,
      episodes bigint NOT NULL DEFAULT 0, successes bigint NOT NULL DEFAULT 0)""")
  op.execute("""
    CREATE TABLE pi0rag.commits (
      memory integer NOT NULL REFERENCES pi0rag.memories ON DELETE CASCADE, version bigint NOT NULL,
      kind text NOT NULL, call uuid NOT NULL, token text, digest bytea NOT NULL,
      first_id bigint NOT NULL, last_id bigint NOT NULL, ended bigint NOT NULL, succeeded bigint NOT NULL,
      episodes bigint NOT NULL, successes bigint NOT NULL, writer text NOT NULL,
      committed timestamptz NOT NULL DEFAULT clock_timestamp(),
      PRIMARY KEY (memory, version), UNIQUE (memory, call), UNIQUE (memory, token))""")
  op.execute(f"""
    CREATE TABLE pi0rag.records (
      memory integer NOT NULL REFERENCES pi0rag.memories ON DELETE CASCADE, id bigint NOT NULL,
      added bigint NOT NULL, removed bigint, erased boolean NOT NULL DEFAULT false,
      kind text NOT NULL, outcome text NOT NULL, failure_kind text NOT NULL, task text NOT NULL, prompt text NOT NULL,
      provenance json NOT NULL, created double precision NOT NULL, digest bytea NOT NULL, {_COUNTERS},
      key bytea NOT NULL, base bytea NOT NULL, corrected bytea NOT NULL,
      PRIMARY KEY (memory, id, added))""")
  # Noise does not shrink, and rows whose counters change are copied: the arrays stay where they are.
  for name in ("key", "base", "corrected"):
    op.execute(f"ALTER TABLE pi0rag.records ALTER COLUMN {name} SET STORAGE EXTERNAL")
  op.execute("CREATE UNIQUE INDEX records_present ON pi0rag.records (memory, id) WHERE removed IS NULL")
  op.execute("CREATE INDEX records_added ON pi0rag.records (memory, added)")
  op.execute("CREATE INDEX records_removed ON pi0rag.records (memory, removed) WHERE removed IS NOT NULL")
  op.execute("CREATE INDEX records_digest ON pi0rag.records (memory, digest) WHERE removed IS NULL")
  op.execute("CREATE INDEX records_episode ON pi0rag.records (memory, (provenance ->> 'episode'))")
  op.execute(f"""
    CREATE TABLE pi0rag.history (
      memory integer NOT NULL REFERENCES pi0rag.memories ON DELETE CASCADE, id bigint NOT NULL,
      version bigint NOT NULL, {_COUNTERS},
      PRIMARY KEY (memory, id, version))""")
  op.execute("CREATE INDEX history_version ON pi0rag.history (memory, version)")
