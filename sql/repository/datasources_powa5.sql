-- what is read once per server
SELECT f.name,
    CASE f.kind WHEN 'extension' THEN f.name END AS extension,
    f.external, f.query_source, f.query_cleanup
FROM {powa}.powa_functions AS f
WHERE f.operation = 'snapshot' AND f.enabled AND f.srvid = $1
ORDER BY f.priority, f.name, f.function_name
