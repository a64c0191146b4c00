-- what the collector's role may see, and what it looks up (psql)
GRANT pg_monitor TO :"role";
SELECT pg_catalog.format('GRANT USAGE ON SCHEMA %I TO %I', n.nspname, :'role')
FROM pg_catalog.pg_extension AS e
JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
WHERE n.nspname <> 'pg_catalog'
\gexec
SELECT pg_catalog.format('GRANT SELECT ON %1$I.powa_databases, %1$I.powa_statements TO %2$I', n.nspname, :'role')
FROM pg_catalog.pg_extension AS e
JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
WHERE e.extname = 'powa'
\gexec
-- pg_qualstats is emptied after each snapshot
SELECT pg_catalog.format('GRANT EXECUTE ON FUNCTION %I.pg_qualstats_reset() TO %I', n.nspname, :'role')
FROM pg_catalog.pg_extension AS e
JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
WHERE e.extname = 'pg_qualstats'
\gexec
