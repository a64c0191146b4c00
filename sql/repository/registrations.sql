-- all servers as they are registered, without their passwords; PoWA 4.0 does not know their versions
SELECT s.id, s.alias, s.hostname, s.port, s.dbname, s.username, s.frequency,
    s.retention::pg_catalog.text AS retention,
    s.password IS NOT NULL AS has_password,
    pg_catalog.to_jsonb(s) ->> 'version' AS version
FROM {powa}.powa_servers AS s
WHERE s.id > 0
ORDER BY s.id
