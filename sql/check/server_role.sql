-- whether the role sees other roles' statements, and into which databases it may not go
SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') AS sees_all,
    ARRAY(
        SELECT d.datname::pg_catalog.text
        FROM pg_catalog.pg_database AS d
        WHERE d.datallowconn AND NOT pg_catalog.has_database_privilege(d.oid, 'CONNECT')
        ORDER BY d.datname
    ) AS closed
