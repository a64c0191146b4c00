-- what is read once per server; PoWA 4.0 does not know which extension it is from
SELECT f.module AS name,
    pg_catalog.to_jsonb(f) ->> 'extname' AS extension,
    false AS external, f.query_source, f.query_cleanup
FROM {powa}.powa_functions AS f
WHERE f.operation = 'snapshot' AND f.enabled AND f.srvid = $1
ORDER BY f.priority, f.module, f.function_name
