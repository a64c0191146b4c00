-- one server, also when it is switched off
SELECT s.id, s.hostname, s.port, s.username, s.password, s.dbname, s.frequency, s.alias,
    EXISTS (SELECT FROM {powa}.powa_snapshot_metas AS m WHERE m.srvid = s.id) AS is_registered
FROM {powa}.powa_servers AS s
WHERE s.id = $1
