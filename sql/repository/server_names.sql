-- what servers are called, those that are switched off too
SELECT s.id, s.alias, s.hostname, s.port
FROM {powa}.powa_servers AS s
WHERE s.id > 0
ORDER BY s.id
