-- begin a snapshot's transaction: its time, and a point to come back to after each datasource
BEGIN;
SELECT pg_catalog.to_char(pg_catalog.now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00';
SAVEPOINT datasource
