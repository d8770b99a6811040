-- Definitions: namespaces, their hybrid connections, and the rules of both.
--
-- Names are stored as they were given and, in *_key, folded for comparison (broker.model.fold). Times are microseconds
-- since 1970 UTC. `revision` is the store's version at which a row, or a rule below it, was last written: a reader
-- that knows version N has to fetch only the rows with a higher one.

PRAGMA application_id = 1380729683; -- 'RLCS': the file says whose it is

CREATE TABLE store (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    version INTEGER NOT NULL CHECK (version >= 0)
) STRICT;

INSERT INTO store (id, version) VALUES (1, 0);

CREATE TABLE namespaces (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    name_key TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    revision INTEGER NOT NULL
) STRICT;

-- A namespace without a row here answers to any host name.
CREATE TABLE namespace_hosts (
    host_key TEXT PRIMARY KEY,
    namespace_id INTEGER NOT NULL REFERENCES namespaces (id) ON DELETE CASCADE,
    position INTEGER NOT NULL
) STRICT;

CREATE TABLE hybrid_connections (
    id INTEGER PRIMARY KEY,
    namespace_id INTEGER NOT NULL REFERENCES namespaces (id) ON DELETE CASCADE,
    path TEXT NOT NULL,
    path_key TEXT NOT NULL,
    requires_client_authorization INTEGER NOT NULL CHECK (requires_client_authorization IN (0, 1)),
    user_metadata TEXT,
    websocket INTEGER NOT NULL CHECK (websocket IN (0, 1)),
    http INTEGER NOT NULL CHECK (http IN (0, 1)),
    raw_target INTEGER NOT NULL CHECK (raw_target IN (0, 1)),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    UNIQUE (namespace_id, path_key)
) STRICT;

CREATE INDEX hybrid_connections_by_revision ON hybrid_connections (revision);

-- A rule sits on a hybrid connection, or on the namespace itself where hybrid_connection_id is null.
CREATE TABLE rules (
    id INTEGER PRIMARY KEY,
    namespace_id INTEGER NOT NULL REFERENCES namespaces (id) ON DELETE CASCADE,
    hybrid_connection_id INTEGER REFERENCES hybrid_connections (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    name_key TEXT NOT NULL,
    rights TEXT NOT NULL, -- words of Listen, Manage, Send in that order, one blank between
    primary_key TEXT NOT NULL,
    secondary_key TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX rules_of_namespaces ON rules (namespace_id, name_key) WHERE hybrid_connection_id IS NULL;
CREATE UNIQUE INDEX rules_of_hybrid_connections ON rules (hybrid_connection_id, name_key)
    WHERE hybrid_connection_id IS NOT NULL;
