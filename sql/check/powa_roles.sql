-- whether PoWA 5's own roles are there, and whether they are set up in this database
SELECT w.oid IS NOT NULL AS exist,
    coalesce(pg_catalog.has_table_privilege(w.oid, c.oid, 'SELECT'), false) AS are_set_up
FROM pg_catalog.pg_extension AS e
JOIN pg_catalog.pg_class AS c ON c.relnamespace = e.extnamespace AND c.relname = 'powa_servers'
LEFT JOIN pg_catalog.pg_roles AS w ON w.rolname = 'powa_write_all_data'
WHERE e.extname = 'powa'
