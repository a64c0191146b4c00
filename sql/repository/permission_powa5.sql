-- whether a session's role holds one that may steer the collector
SELECT EXISTS (
    SELECT
    FROM pg_catalog.pg_stat_activity AS a
    JOIN pg_catalog.pg_roles AS r ON
        r.rolname IN (
            SELECT p.rolname
            FROM {powa}.powa_roles AS p
            WHERE p.powa_role IN ('powa_signal_backend', 'powa_write_all_data', 'powa_admin')
        )
        OR (r.rolname = 'pg_signal_backend'
            AND pg_catalog.current_setting('server_version_num')::pg_catalog.int4 >= 140000)
    WHERE a.pid = $1 AND pg_catalog.pg_has_role(a.usesysid, r.oid, 'USAGE')
)
