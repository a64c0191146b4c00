-- add the collector's own errors to those of the snapshot just taken
UPDATE {powa}.powa_snapshot_metas
SET errors = coalesce(errors, '{}') || $2::pg_catalog.text[]
WHERE srvid = $1
