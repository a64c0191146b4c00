-- whether PoWA 5's own roles are there, and whether they are set up in this database
SELECT s.oid IS NOT NULL AS exist,
    coalesce(pg_catalog.has_table_privilege(s.oid, c.oid, 'SELECT'), false) AS are_set_up
FROM pg_catalog.pg_extension AS e
JOIN pg_catalog.pg_class AS c ON c.relnamespace = e.extnamespace AND c.relname = 'powa_servers'
LEFT JOIN pg_catalog.pg_roles AS s ON s.rolname = 'powa_snapshot'
WHERE e.extname = 'powa'
