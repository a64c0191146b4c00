-- the system catalogs that are copied, and the databases whose copy is less than a year old
SELECT f.catname AS name, f.query_source, f.tmp_table, f.excluded_dbnames
FROM {powa}.powa_catalog_functions($1, $2, '1 year') AS f
ORDER BY f.catname
