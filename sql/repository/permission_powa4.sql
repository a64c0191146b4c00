-- whether a session's role may steer the collector: it is the collector's own, or may signal backends, or (before
-- PostgreSQL 14) write PoWA's data
SELECT EXISTS (
    SELECT
    FROM pg_catalog.pg_stat_activity AS a
    JOIN pg_catalog.pg_extension AS e ON e.extname = 'powa'
    JOIN pg_catalog.pg_class AS c ON
        c.relnamespace = e.extnamespace AND c.relname = 'powa_statements'
    WHERE a.pid = $1 AND (
        a.usename = session_user
        OR CASE
            WHEN pg_catalog.current_setting('server_version_num')::pg_catalog.int4 >= 140000
            THEN pg_catalog.pg_has_role(a.usesysid, 'pg_signal_backend', 'USAGE')
            ELSE pg_catalog.has_table_privilege(a.usesysid, c.oid, 'INSERT')
        END
    )
)
