-- what is read in each database
SELECT f.db_module AS name, f.query_source, f.tmp_table, f.dbnames
FROM {powa}.powa_db_functions($1, $2) AS f
WHERE f.operation = 'snapshot' AND f.enabled
ORDER BY f.priority, f.db_module
