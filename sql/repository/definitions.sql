-- the definitions of datasources, for servers that have none
SELECT
    p.proname::pg_catalog.text AS name,
    l.lanname::pg_catalog.text AS language,
    p.proargnames[1] AS parameter,
    p.prosrc AS body
FROM pg_catalog.pg_proc AS p
JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
JOIN pg_catalog.pg_language AS l ON l.oid = p.prolang
WHERE n.nspname = $1
  AND p.proname = ANY ($2::pg_catalog.text[]::pg_catalog.name[])
  AND p.proargtypes = ARRAY['pg_catalog.int4'::pg_catalog.regtype]::pg_catalog.oidvector
