-- take over the rows that were copied in; and the transaction that does it, with how many snapshots there were before
SELECT
    taken.errors,
    pg_catalog.txid_current() AS transaction,
    (SELECT m.coalesce_seq::pg_catalog.int8 FROM {powa}.powa_snapshot_metas AS m WHERE m.srvid = $1) AS sequence
FROM {powa}.powa_take_snapshot($1) AS taken (errors)
