-- say why there is no snapshot
UPDATE {powa}.powa_snapshot_metas
SET errors = $2::pg_catalog.text[]
WHERE srvid = $1
