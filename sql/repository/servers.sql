-- the servers, those that are switched off too
SELECT s.id, s.hostname, s.port, s.username, s.password, s.dbname, s.frequency, s.alias,
    EXISTS (SELECT FROM {powa}.powa_snapshot_metas AS m WHERE m.srvid = s.id) AS is_registered
FROM {powa}.powa_servers AS s
WHERE s.id > 0
ORDER BY s.id
