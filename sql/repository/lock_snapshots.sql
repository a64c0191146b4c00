-- wait until no snapshot of a server is being stored, and keep others from it
SELECT FROM {powa}.powa_snapshot_metas AS m WHERE m.srvid = $1 FOR UPDATE
