-- what has become of a transaction that was about to store a snapshot: its state, which is null when it is too long
-- ago, and whether there is a later snapshot than there was before it
SELECT
    pg_catalog.txid_status($2) AS state,
    (SELECT m.coalesce_seq::pg_catalog.int8 > $3 FROM {powa}.powa_snapshot_metas AS m WHERE m.srvid = $1) AS is_later
