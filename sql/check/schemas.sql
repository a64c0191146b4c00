-- schemas of extensions that the role may not use
SELECT DISTINCT n.nspname::pg_catalog.text AS schema
FROM pg_catalog.pg_extension AS e
JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
WHERE NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
ORDER BY 1
