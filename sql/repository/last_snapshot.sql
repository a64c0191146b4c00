-- how long ago a server's last snapshot began, in seconds; null when there was none
SELECT CASE WHEN pg_catalog.isfinite(m.snapts)
    THEN EXTRACT(epoch FROM pg_catalog.clock_timestamp() - m.snapts)::pg_catalog.float8
END AS age
FROM {powa}.powa_snapshot_metas AS m
WHERE m.srvid = $1
