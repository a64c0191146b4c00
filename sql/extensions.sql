-- the extensions of this database, and the schema that each lives in
SELECT e.extname::text, n.nspname::text AS schema, e.extversion AS version
FROM pg_catalog.pg_extension AS e
JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
