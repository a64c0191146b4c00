-- keep others from taking a snapshot of this server, which would make powa_take_snapshot fail when all rows are there
SELECT FROM {powa}.powa_snapshot_metas AS m WHERE m.srvid = $1 FOR UPDATE NOWAIT
