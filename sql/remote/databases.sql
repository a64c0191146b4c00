-- the databases that one can connect to
SELECT d.oid, d.datname::pg_catalog.text AS datname
FROM pg_catalog.pg_database AS d
WHERE d.datallowconn
ORDER BY d.oid
