-- whether the role may do this ($1, a privilege) to the table of servers
SELECT pg_catalog.has_table_privilege(c.oid, $1)
FROM pg_catalog.pg_extension AS e
JOIN pg_catalog.pg_class AS c ON c.relnamespace = e.extnamespace AND c.relname = 'powa_servers'
WHERE e.extname = 'powa'
