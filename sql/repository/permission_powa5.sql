-- whether a session's role may steer the collector: it is the collector's own, or holds one that may
SELECT EXISTS (
    SELECT
    FROM pg_catalog.pg_stat_activity AS a
    WHERE a.pid = $1 AND (
        a.usename = session_user
        OR EXISTS (
            SELECT
            FROM pg_catalog.pg_roles AS r
            WHERE pg_catalog.pg_has_role(a.usesysid, r.oid, 'USAGE') AND (
                r.rolname IN (
                    SELECT p.rolname
                    FROM {powa}.powa_roles AS p
                    WHERE p.powa_role IN ('powa_signal_backend', 'powa_write_all_data', 'powa_admin')
                )
                OR (r.rolname = 'pg_signal_backend'
                    AND pg_catalog.current_setting('server_version_num')::pg_catalog.int4 >= 140000)
            )
        )
    )
)
